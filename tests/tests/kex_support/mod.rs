//! Who must not get away with anything while keys are exchanged.

pub(crate) mod liar;
pub(crate) mod middle;
pub(crate) mod packet;
