//! The operating system, the machine below it and its names, by os-release(5), proc(5), sysfs and hosts(5).

use std::fs;
use std::net::IpAddr;

use sortie_protocol::command::facts::{Hardware, Host, Os};

use super::{container, first_line, init, kibibytes, os_release, package_manager, release_value, text};
use crate::output::now;
use crate::sys::host;

pub(crate) fn os() -> Os {
    let release = os_release();
    let value = |key| release_value(&release, key);
    let name = host::name();
    Os {
        id: value("ID"),
        id_like: value("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
        version: value("VERSION_ID"),
        codename: value("VERSION_CODENAME"),
        pretty_name: value("PRETTY_NAME"),
        kernel: name.kernel,
        kernel_version: name.version,
        machine: name.machine,
        arch: super::arch().to_owned(),
        init: init().to_owned(),
        package_manager: package_manager().to_owned(),
        lang: ["/etc/locale.conf", "/etc/default/locale"]
            .iter()
            .map(|path| release_value(&text(path), "LANG"))
            .find(|lang| !lang.is_empty())
            .unwrap_or_default(),
        timezone: timezone(),
        selinux: match &*first_line("/sys/fs/selinux/enforce") {
            "1" => "enforcing",
            "0" => "permissive",
            _ => "disabled",
        }
        .to_owned(),
        apparmor: first_line("/sys/module/apparmor/parameters/enabled") == "Y",
    }
}

/// localtime(5): a link into the database; what is no link may be named beside it.
fn timezone() -> String {
    let link = fs::read_link("/etc/localtime").unwrap_or_default();
    match link.to_string_lossy().split_once("zoneinfo/") {
        Some((_, zone)) => zone.to_owned(),
        None => first_line("/etc/timezone"),
    }
}

pub(crate) fn hardware() -> Hardware {
    let memory = text("/proc/meminfo");
    let cpuinfo = text("/proc/cpuinfo");
    let dmi = |name: &str| first_line(&["/sys/class/dmi/id/", name].concat());
    let tree = || first_line("/proc/device-tree/model").replace('\0', "");
    let vendor = Some(dmi("sys_vendor")).filter(|vendor| !vendor.is_empty()).unwrap_or_else(tree);
    let product = dmi("product_name");
    Hardware {
        cpus: host::cpus(),
        cpu_model: ["model name", "Model", "uarch"]
            .iter()
            .find_map(|key| colon_value(&cpuinfo, key))
            .unwrap_or_default(),
        memory_bytes: kibibytes(&memory, "MemTotal:"),
        memory_available_bytes: kibibytes(&memory, "MemAvailable:"),
        swap_bytes: kibibytes(&memory, "SwapTotal:"),
        swap_free_bytes: kibibytes(&memory, "SwapFree:"),
        virtualization: virtualization(&cpuinfo, &[&*vendor, " ", &product].concat()).to_owned(),
        vendor,
        product,
        container: container(),
    }
}

/// A value of `/proc/cpuinfo`, behind a colon.
fn colon_value(text: &str, key: &str) -> Option<String> {
    let values = text.lines().filter_map(|line| line.strip_prefix(key)?.trim_start().strip_prefix(':'));
    values.map(|value| value.trim().to_owned()).next()
}

/// The words of systemd-detect-virt(1), in its order: clouds name themselves in the firmware's tables, whatever they run on.
fn virtualization(cpuinfo: &str, dmi: &str) -> &'static str {
    const CLOUDS: &[(&str, &str)] = &[
        ("Amazon EC2", "amazon"),
        ("Google Compute", "google"),
        ("innotek", "oracle"),
        ("VirtualBox", "oracle"),
        ("Parallels", "parallels"),
    ];
    const SIGNATURES: &[(&str, &str)] = &[
        ("KVMKVMKVM", "kvm"),
        ("XenVMMXenVMM", "xen"),
        ("TCGTCGTCGTCG", "qemu"),
        ("VMwareVMware", "vmware"),
        ("Microsoft Hv", "microsoft"),
        ("bhyve bhyve", "bhyve"),
    ];
    const FIRMWARE: &[(&str, &str)] =
        &[("QEMU", "qemu"), ("KVM", "kvm"), ("VMware", "vmware"), ("Xen", "xen"), ("Microsoft", "microsoft")];
    let among = |table: &[(&str, &'static str)], text: &str| {
        table.iter().find(|(sign, _)| text.contains(sign)).map(|(_, name)| *name)
    };
    let is_x86 = cfg!(target_arch = "x86_64");
    // Whole machines are let by clouds too.
    if is_x86 && !cpuinfo.contains(" hypervisor") {
        return "";
    }
    let tree = || first_line("/proc/device-tree/hypervisor/compatible");
    let signature = if is_x86 { host::hypervisor() } else { tree().replace("linux,kvm", "KVMKVMKVM") };
    let found = among(CLOUDS, dmi).or_else(|| among(SIGNATURES, &signature)).or_else(|| among(FIRMWARE, dmi));
    found.unwrap_or(if is_x86 { "vm-other" } else { "" })
}

pub(crate) fn host() -> Host {
    let hostname = host::name().host;
    let fqdn =
        if hostname.contains('.') { hostname.clone() } else { full_name(&text("/etc/hosts"), &hostname) };
    let domain = fqdn.split_once('.').map_or("", |(_, domain)| domain).to_owned();
    let uptime = first_line("/proc/uptime");
    Host {
        hostname,
        fqdn,
        domain,
        boot_id: first_line("/proc/sys/kernel/random/boot_id"),
        uptime: uptime.split('.').next().and_then(|seconds| seconds.parse().ok()).unwrap_or(0),
        time: now().to_string(),
    }
}

/// hosts(5): the addresses of a name.
pub(crate) fn addresses_of(name: &str) -> Vec<IpAddr> {
    let hosts = text("/etc/hosts");
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let named = lines.filter(|line| line.split_whitespace().skip(1).any(|known| known == name));
    named.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// hosts(5): the first name of the first line that has this name.
fn full_name(hosts: &str, name: &str) -> String {
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let mut names = lines.map(|line| line.split_whitespace().skip(1));
    let first =
        names.find_map(|names| names.clone().any(|known| known == name).then(|| names.clone().next()));
    first.flatten().unwrap_or(name).to_owned()
}

#[cfg(any(test, fuzzing))]
pub(super) fn fuzz(text: &str) {
    colon_value(text, "model name");
    full_name(text, "web1");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_full_name_is_the_first_of_its_line() {
        let hosts =
            "127.0.0.1 localhost\n# 192.0.2.1 no.example web1\n192.0.2.7\tweb1.example.org web1 # x\n";
        assert_eq!(full_name(hosts, "web1"), "web1.example.org");
        assert_eq!(full_name(hosts, "localhost"), "localhost");
        assert_eq!(full_name(hosts, "x"), "x");
    }

    #[test]
    fn the_first_processor_names_itself() {
        let text = "processor\t: 0\nmodel\t\t: 85\nmodel name\t: A: b\nprocessor\t: 1\nmodel name\t: c\n";
        assert_eq!(colon_value(text, "model name").as_deref(), Some("A: b"));
        assert_eq!(colon_value(text, "Model"), None);
    }

    #[test]
    fn a_cloud_is_named_before_what_it_runs_on() {
        let virtualized = |dmi| virtualization("flags : fpu hypervisor\n", dmi);
        assert_eq!(virtualized("Amazon EC2 m5.large"), "amazon");
        assert_eq!(virtualized("innotek GmbH VirtualBox"), "oracle");
        if cfg!(target_arch = "x86_64") {
            assert_eq!(virtualization("flags : fpu\n", "Amazon EC2 m5.metal"), "");
        }
    }

    #[test]
    fn this_machine_is_described() {
        let (os, hardware, host) = (os(), hardware(), host());
        assert!(!os.kernel.is_empty() && !os.machine.is_empty() && !os.kernel_version.is_empty());
        assert!(hardware.cpus > 0 && hardware.memory_bytes >= hardware.memory_available_bytes);
        assert!(host.uptime > 0 && host.fqdn.starts_with(&host.hostname) && host.time.ends_with('Z'));
    }
}
