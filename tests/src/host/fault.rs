//! What can befall a host: the link cut in several ways, the power cut, a reboot, a freeze.

use std::fs;

use anyhow::{Context as _, Result, ensure};

use super::Host;
use super::spec::Request;

/// A way to cut a host off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Every packet is lost, both ways: nobody learns anything.
    Drop,
    /// Packets to the SSH server are answered with a TCP reset.
    Reset,
    /// The cable is out, seen by the host and by the bridge.
    Link,
}

impl Host {
    /// Cuts the host off, until [`Host::heal`] or its next boot.
    ///
    /// # Errors
    /// When the host was never on, or the kernel refuses.
    #[allow(clippy::unused_async, reason = "like the other faults, it may have to wait")]
    pub async fn cut(&self, cut: Cut) -> Result<()> {
        let name = self.name.clone();
        let filter = |rules: &str| Request::Filter { name: name.clone(), rules: rules.to_owned() };
        self.shared.ask(&match cut {
            Cut::Drop => filter(
                "table inet cut {\n chain in {\n type filter hook input priority 0;\n iifname \"eth0\" drop;\n }\n \
                 chain out {\n type filter hook output priority 0;\n oifname \"eth0\" drop;\n }\n}",
            ),
            Cut::Reset => filter(
                "table inet cut {\n chain in {\n type filter hook input priority 0;\n \
                 tcp dport 22 reject with tcp reset;\n }\n}",
            ),
            Cut::Link => Request::Link { name, up: false },
        })
    }

    /// Ends every [`Cut`].
    ///
    /// # Errors
    /// As [`Host::cut`].
    #[allow(clippy::unused_async, reason = "like the other faults, it may have to wait")]
    pub async fn heal(&self) -> Result<()> {
        self.shared.ask(&Request::Filter { name: self.name.clone(), rules: String::new() })?;
        self.shared.ask(&Request::Link { name: self.name.clone(), up: true })
    }

    /// A power cut: not one packet more leaves the host, and when this returns all its processes have ended. Its disk
    /// stays as it is; [`Host::start`] turns it on again.
    ///
    /// # Errors
    /// When it is off, or the kernel refuses.
    #[allow(clippy::unused_async, reason = "like the other faults, it may have to wait")]
    pub async fn crash(&self) -> Result<()> {
        self.shared.ask(&Request::Crash(self.name.clone()))
    }

    /// Asks the host to reboot, as root would, and waits until the SSH server of the next boot answers.
    ///
    /// # Errors
    /// When it is off or does not come back.
    pub async fn reboot(&self) -> Result<()> {
        let before = self.leader()?;
        // It may be gone before the program has ended well.
        let asked = self.exec(["reboot"]).await?;
        crate::eventually("the next boot", || {
            let now = self.leader()?;
            ensure!(now != before, "the last boot still runs; reboot said {asked:?}");
            Ok(())
        })
        .await?;
        self.wait_ssh().await
    }

    /// Stops every process of the host, until [`Host::thaw`]; its kernel still takes packets.
    ///
    /// # Errors
    /// When it was never on, or the kernel refuses.
    pub async fn freeze(&self) -> Result<()> {
        self.set_frozen(true).await
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// As [`Host::freeze`].
    pub async fn thaw(&self) -> Result<()> {
        self.set_frozen(false).await
    }

    async fn set_frozen(&self, frozen: bool) -> Result<()> {
        let group = self.cgroup();
        let value = u8::from(frozen).to_string();
        fs::write(group.join("cgroup.freeze"), &value).with_context(|| format!("freezing {}", self.name))?;
        crate::eventually("frozen or thawed", || {
            let events = fs::read_to_string(group.join("cgroup.events"))?;
            ensure!(events.contains(&format!("frozen {value}")), "{events:?}");
            Ok(())
        })
        .await
    }
}
