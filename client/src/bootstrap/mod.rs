//! wip
pub mod script;
