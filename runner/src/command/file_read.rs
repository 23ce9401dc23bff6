//! `file_read`: reads a file or a part of it, exactly.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use sha2::{Digest, Sha256};
use sortie_protocol::command::file_read::{FileRead, FileReadResult, MAX_READ};
use sortie_protocol::{ErrorCode, FRAME_LIMIT, Sha256Hex, text};

use super::Context;
use crate::failure::Failure;
use crate::job;
use crate::sys::host;

/// Bytes read at a time.
const CHUNK: usize = 256 * 1024;

/// Bytes of a frame that are left to the content.
const ROOM_IN_FRAME: usize = FRAME_LIMIT - 64 * 1024;

pub(super) fn run(context: &Context) -> Result<FileReadResult, Failure> {
    let params: FileRead = job::parse(&context.job.take_params())?;
    if params.path.is_empty() {
        return Err(Failure::params("path is required"));
    }
    if params.path.contains('\0') {
        return Err(Failure::params("path: contains a NUL byte"));
    }
    let most = match u64::try_from(params.max_bytes) {
        Ok(0) => MAX_READ,
        Ok(most) => most.min(MAX_READ),
        Err(_) => return Err(Failure::params("max_bytes: must not be negative")),
    };
    if params.offset > i64::MAX.unsigned_abs() - 2 * MAX_READ {
        return Err(Failure::params("offset: beyond what a file can have"));
    }
    let failed = |error: &std::io::Error| Failure::at("cannot read", &params.path, error);
    // Without O_NONBLOCK a FIFO without a writer would be waited for.
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&params.path)
        .map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if !metadata.is_file() {
        let what = if metadata.is_dir() { "is a directory" } else { "is not a regular file" };
        return Err(Failure::new(ErrorCode::Conflict, format!("{:?} {what}", params.path)));
    }
    let version = format!(
        "{:x}:{:x}:{:x}:{}.{:09}",
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.ctime(),
        metadata.ctime_nsec()
    );
    if !params.if_version.is_empty() && params.if_version != version {
        let message = format!("{:?} was changed or replaced since it was first read", params.path);
        return Err(Failure::new(ErrorCode::Conflict, message));
    }
    if context.job.command.check {
        return Ok(FileReadResult { version, size: metadata.size(), ..FileReadResult::default() });
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    // Taken at once, or several reads could each hold a part and wait for the rest for ever. Files of /proc say that
    // they are empty.
    let expected = usize::try_from(metadata.size()).unwrap_or(usize::MAX).max(CHUNK);
    let mut room = most.min(expected) + 1;
    context.hold([context.pool.wait_for(room, &context.job)?]);
    // One byte more says whether the file goes on; its size does not, for one that grows.
    let mut content = Vec::with_capacity(room);
    while content.len() <= most {
        context.job.go_on()?;
        let begin = content.len();
        let step = CHUNK.min(most + 1 - begin);
        if begin + step > room {
            context.hold(context.pool.take(step));
            room += step;
        }
        content.resize(begin + step, 0);
        let at = params.offset.saturating_add(begin as u64);
        match file.read_at(&mut content[begin..], at) {
            Ok(0) => {
                content.truncate(begin);
                break;
            }
            Ok(count) => content.truncate(begin + count),
            Err(error) if error.kind() == ErrorKind::Interrupted => content.truncate(begin),
            Err(error) => return Err(failed(&error)),
        }
    }
    let truncated = content.len() > most;
    content.truncate(most);
    let checksum = Sha256Hex::from_bytes(&Sha256::digest(&content).into()).to_string();
    let (content, encoding) = text::encode_within(content, ROOM_IN_FRAME);
    Ok(FileReadResult {
        content,
        encoding,
        size: metadata.size(),
        mode: format!("{:04o}", metadata.mode() & 0o7777),
        owner: metadata.uid().to_string(),
        group: metadata.gid().to_string(),
        owner_name: host::user_name(metadata.uid()),
        group_name: host::group_name(metadata.gid()),
        checksum,
        truncated,
        version,
    })
}
