//! What the suites of the client share: a client of a test host, and the runners it sends there.

#![allow(dead_code, reason = "each suite uses its own part of this")]

pub(crate) mod agent;

use std::sync::Arc;

use anyhow::Result;
use sortie_client::ssh_config::ConfigSource;
use sortie_client::{Client, ClientBuilder, Error, RunnerSet, Session, SshSettings, Target, Transport};
use sortie_tests::access::Access;
use sortie_tests::runner;

/// How to log in there, and nothing of this machine's own configuration.
pub(crate) fn settings(access: &Access) -> SshSettings {
    SshSettings {
        config: ConfigSource::None,
        identities: vec![access.identity.clone()],
        user_known_hosts: Some(vec![access.known_hosts.clone()]),
        global_known_hosts: Some(Vec::new()),
        ..SshSettings::default()
    }
}

pub(crate) fn target(access: &Access) -> Result<Target> {
    Ok(Target::parse(&format!("{}@{}", access.user, access.addr()))?)
}

pub(crate) fn builder(access: &Access) -> Result<ClientBuilder> {
    let runners = RunnerSet::from_dir(&runner::directory()?)?;
    Ok(Client::builder().runners(runners).ssh(settings(access)))
}

/// The transport that a client's settings make of this access.
pub(crate) async fn transport(access: &Access) -> Result<Arc<dyn Transport>> {
    Ok(builder(access)?.build().ssh(&target(access)?).await?)
}

pub(crate) async fn connect(access: &Access) -> Result<Session> {
    Ok(builder(access)?.connect(&target(access)?).await?)
}

/// The error of a connection that must not come about.
pub(crate) async fn refused(builder: ClientBuilder, access: &Access) -> Result<Error> {
    match builder.connect(&target(access)?).await {
        Ok(_) => anyhow::bail!("it connected"),
        Err(error) => Ok(error),
    }
}
