//! Lists of commands in YAML or JSON, with variables, templates and conditions, applied to hosts.
//!
//! A [`StepList`] is read and checked whole before any host is spoken with; applying it to a host gives a stream of typed
//! [`Event`]s and a [`Report`]. `docs/APPLY.md` describes the files.
//!
//! ```no_run
//! use std::path::Path;
//! use std::sync::Arc;
//! use sortie_client::apply::{Event, Options, StepList, Variables};
//! use sortie_client::{Client, RunnerSet, Target};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let variables = Variables::new().set("port", 8080)?;
//! let list = Arc::new(StepList::load(Path::new("web.yaml"), &variables)?);
//! let client = Client::builder().runners(RunnerSet::from_dir("target/dist".as_ref())?).build();
//! let transport = client.ssh(&Target::parse("deploy@web1")?).await?;
//! let mut applying = list.apply(client.open(transport), Options::default());
//! while let Some(event) = applying.next_event().await {
//!     if let Event::Ended(step) = event {
//!         println!("{}: {}", step.id, step.status.name());
//!     }
//! }
//! let report = applying.wait().await;
//! println!("{} changed, left undone: {:?}", report.changed, report.left_undone);
//! # Ok(())
//! # }
//! ```

mod ask;
mod content;
mod fields;
mod file;
mod footprint;
mod outcome;
mod params;
mod plan;
mod prepare;
mod problem;
mod run;
mod source;
mod step;
mod template;
mod typed;
mod vars;

pub use file::StepList;
pub use outcome::{Ended, Event, Report, Status, StepFailure};
pub use plan::Planned;
pub use problem::{Position, Problem, ProblemKind, Problems};
pub use run::{Applying, Options, Stopper};
pub use step::Step;
pub use vars::Variables;
