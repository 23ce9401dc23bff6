//! `sortie completions`: a script for a shell, made from the definition of the arguments.

use clap::CommandFactory;

use crate::report;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For which shell
    shell: clap_complete::Shell,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<i32> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::Arguments::command(), "sortie", &mut script);
    report::plain_output(&script)?;
    Ok(0)
}
