//! Bytes of this machine on their way to hosts: standard input as it comes, or a file that is read as often as there are
//! hosts. Never more than a piece of it is in memory.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use tokio::sync::mpsc;

use crate::outcome::usage;

/// Bytes that are read at a time.
const PIECE: usize = 64 * 1024;

/// A whole content, readable from anywhere and any number of times.
#[derive(Clone)]
pub(crate) struct Whole {
    file: Arc<File>,
    /// Bytes.
    pub(crate) len: u64,
    /// Permission bits, where it is a file that somebody named.
    pub(crate) mode: Option<u32>,
}

impl Whole {
    /// Everything that standard input holds, put aside in an unnamed temporary file.
    pub(crate) fn of_stdin() -> anyhow::Result<Self> {
        Self::spool(io::stdin().lock()).context("cannot read standard input")
    }

    /// A file; what is none, such as a pipe, is read to its end and put aside first.
    pub(crate) fn of_file(path: &Path) -> anyhow::Result<Self> {
        let fail = |error: io::Error| usage(format!("{}: {error}", path.display()));
        let file = File::open(path).map_err(fail)?;
        let metadata = file.metadata().map_err(fail)?;
        if metadata.is_dir() {
            return Err(usage(format!(
                "{}: it is a directory; only single files can be sent",
                path.display()
            )));
        }
        if !metadata.is_file() {
            return Self::spool(file).with_context(|| format!("cannot read {}", path.display()));
        }
        Ok(Self { file: Arc::new(file), len: metadata.len(), mode: Some(metadata.mode() & 0o7777) })
    }

    fn spool(mut from: impl Read) -> io::Result<Self> {
        let mut file = tempfile::tempfile()?;
        let len = io::copy(&mut from, &mut file)?;
        file.rewind()?;
        Ok(Self { file: Arc::new(file), len, mode: None })
    }

    /// A piece from `offset` on; empty at the end.
    pub(crate) async fn piece(&self, offset: u64) -> io::Result<Vec<u8>> {
        let file = Arc::clone(&self.file);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let read = loop {
                match file.read_at(&mut piece, offset) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result?,
                }
            };
            piece.truncate(read);
            Ok(piece)
        });
        read.await.map_err(io::Error::other)?
    }

    /// All of it, for what is known to be small.
    pub(crate) async fn all(&self) -> anyhow::Result<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let piece = self.piece(all.len() as u64).await?;
            if piece.is_empty() {
                break;
            }
            all.extend_from_slice(&piece);
            if all.len() as u64 > self.len {
                bail!("the file grew while it was read; try again");
            }
        }
        Ok(all)
    }
}

/// Whether standard input is /dev/null: then there is nothing to read, and no need to tell a host so in a frame.
pub(crate) fn stdin_is_null() -> bool {
    let device =
        |file: File| file.metadata().map(|metadata| (metadata.file_type().is_file(), metadata.rdev()));
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from).and_then(device);
    let null = File::open("/dev/null").and_then(device);
    matches!((stdin, null), (Ok(stdin), Ok(null)) if !stdin.0 && stdin.1 == null.1)
}

/// Standard input, piece by piece as it comes. A thread of its own waits for it, which nobody has to wait for.
pub(crate) fn stdin_pieces() -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let Ok(mut stdin) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
        loop {
            let mut piece = vec![0; PIECE];
            let result = match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(read) => {
                    piece.truncate(read);
                    Ok(piece)
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error),
            };
            let failed = result.is_err();
            if sender.blocking_send(result).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_no_file_is_put_aside_and_can_be_read_again() {
        let whole = Whole::spool(&vec![7; 3 * PIECE + 1][..]).unwrap();
        assert_eq!((whole.len, whole.mode), (3 * PIECE as u64 + 1, None));
        assert_eq!(whole.piece(3 * PIECE as u64).await.unwrap(), [7]);
        assert_eq!(whole.all().await.unwrap().len(), 3 * PIECE + 1);
        assert!(whole.piece(whole.len).await.unwrap().is_empty());
    }

    #[test]
    fn a_directory_is_refused_with_a_sentence() {
        let error = Whole::of_file(Path::new("/")).err().unwrap();
        assert!(error.to_string().contains("directory"), "{error}");
    }
}
