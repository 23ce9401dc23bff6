//! This machine itself, by the same script as any other: the runner that works is a copy in a private directory.

use super::command::{program, start_program};
use super::{Launch, Starting, Transport};
use crate::observe::Observer;

/// Starts the runner on this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Local;

impl Transport for Local {
    fn host(&self) -> &str {
        "localhost"
    }

    fn start<'a>(&'a self, launch: &'a Launch, observer: &'a dyn Observer) -> Starting<'a> {
        Box::pin(async move { start_program("localhost", program(launch.argv.iter()), (), observer) })
    }

    fn way(&self) -> String {
        "this machine".to_owned()
    }

    fn unattended(&self) -> bool {
        true
    }
}
