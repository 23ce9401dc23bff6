//! `file_stat`: looks at a path. That nothing is there is a result.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sortie_protocol::command::file_stat::{FileStat, FileStatResult};
use sortie_protocol::text;
use sortie_protocol::time::Timestamp;

use super::{Context, content};
use crate::attributes::{Attributes, kind};
use crate::failure::Failure;
use crate::sys::{at, file, host};
use crate::{job, path};

/// Bytes of extended attributes that are told.
const MOST_ATTRIBUTES: usize = 64 * 1024;

pub(super) fn run(context: &Context) -> Result<FileStatResult, Failure> {
    let params: FileStat = job::parse(&context.job.take_params())?;
    path::check_absolute(&params.path)?;
    let path = Path::new(&params.path);
    let failed = |error: &std::io::Error| Failure::at("cannot look at", path, error);
    // All that follows is about one and the same object, whatever happens to the name.
    let place = match at::place(path, params.follow) {
        Ok(place) => place,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(FileStatResult::default());
        }
        Err(error) => return Err(failed(&error)),
    };
    let metadata = place.metadata().map_err(|error| failed(&error))?;
    let kind = kind(&metadata);
    let present = Attributes::of(&metadata);
    let mut result = FileStatResult {
        exists: true,
        kind: kind.to_owned(),
        size: Some(metadata.size()),
        mode: present.mode_text(),
        owner: present.uid.to_string(),
        group: present.gid.to_string(),
        owner_name: host::user_name(present.uid),
        group_name: host::group_name(present.gid),
        mtime: Timestamp::from_unix(metadata.mtime(), u32::try_from(metadata.mtime_nsec()).unwrap_or(0))
            .to_string(),
        links: metadata.nlink(),
        ..FileStatResult::default()
    };
    if kind == "link" {
        let target = file::link_behind(&place).map_err(|error| failed(&error))?;
        let (target, encoding) = text::encode(target.into_vec());
        (result.target, result.target_encoding) = (Some(target), encoding);
    }
    if params.checksum && kind == "file" {
        let file =
            File::open(at::behind(&place)).map_err(|error| Failure::at("cannot read", path, &error))?;
        result.checksum = Some(content::digest(context, &file, path)?.to_string());
    }
    let mut told = 0;
    for (name, value) in file::attributes_behind(&place) {
        told += name.len() + value.len();
        if name == "security.selinux" {
            let label = value.strip_suffix(b"\0").unwrap_or(&value);
            result.selinux = Some(String::from_utf8_lossy(label).into_owned());
        } else if told <= MOST_ATTRIBUTES {
            result.xattrs.insert(name, STANDARD.encode(value));
        }
    }
    Ok(result)
}
