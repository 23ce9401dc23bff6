//! The memory that all captured output of a session shares, and one stream captured in it: head and tail are kept.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use sortie_protocol::command::exec::Gap;

use crate::failure::Failure;
use crate::job::Job;
use crate::output::lock;

/// Most bytes captured in all commands of a session together.
const POOL: usize = 12 * 1024 * 1024;

/// Most bytes captured of one stream, and what is captured when nothing else is asked for.
pub(crate) const MOST_CAPTURED: u64 = 3 * 1024 * 1024;

/// What is taken from the pool at a time.
const STEP: usize = 64 * 1024;

/// How often somebody who waits for the pool looks whether to go on.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Pool {
    used: Mutex<usize>,
    room: Condvar,
}

impl Pool {
    /// Takes `bytes` if there is room.
    pub(crate) fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let mut used = lock(&self.used);
        let total = used.checked_add(bytes).filter(|total| *total <= POOL)?;
        *used = total;
        Some(Share { pool: Arc::clone(self), bytes })
    }

    /// Takes `bytes` (at most the whole pool), waiting for room as long as the job lives.
    pub(crate) fn wait_for(self: &Arc<Self>, bytes: usize, job: &Job) -> Result<Share, Failure> {
        loop {
            if let Some(share) = self.take(bytes.min(POOL)) {
                return Ok(share);
            }
            job.go_on()?;
            drop(self.room.wait_timeout(lock(&self.used), LOOK_AGAIN));
        }
    }
}

/// Bytes taken from the pool; dropping gives them back.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Drop for Share {
    fn drop(&mut self) {
        *lock(&self.pool.used) -= self.bytes;
        self.pool.room.notify_all();
    }
}

/// Head and tail of a stream.
#[derive(Debug)]
pub(crate) struct Capture {
    head: Vec<u8>,
    tail: VecDeque<u8>,
    head_limit: usize,
    tail_limit: usize,
    total: u64,
    pool: Arc<Pool>,
    shares: Vec<Share>,
    /// Bytes that `shares` are worth.
    room: usize,
}

impl Capture {
    pub(crate) fn new(limit: u64, pool: &Arc<Pool>) -> Self {
        let limit = usize::try_from(limit.min(MOST_CAPTURED)).unwrap_or(0);
        Self {
            head: Vec::new(),
            tail: VecDeque::new(),
            head_limit: limit / 2,
            tail_limit: limit - limit / 2,
            total: 0,
            pool: Arc::clone(pool),
            shares: Vec::new(),
            room: 0,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        // Once bytes went into the tail, or into the hole, the head is closed: what is kept stays in order.
        let head_open = self.tail.is_empty() && self.missing() == 0;
        self.total += bytes.len() as u64;
        let wanted = (self.kept() + bytes.len()).min(self.head_limit + self.tail_limit);
        while self.room < wanted
            && let Some(share) = self.pool.take(STEP)
        {
            self.shares.push(share);
            self.room += STEP;
        }
        let head_room = self.head_limit.min(self.room).saturating_sub(self.head.len());
        let (head, rest) = bytes.split_at(if head_open { head_room.min(bytes.len()) } else { 0 });
        self.head.extend_from_slice(head);
        let tail_limit = self.tail_limit.min(self.room - self.head.len());
        let rest = &rest[rest.len().saturating_sub(tail_limit)..];
        let too_many = (self.tail.len() + rest.len()).saturating_sub(tail_limit);
        self.tail.drain(..too_many);
        self.tail.extend(rest);
    }

    fn kept(&self) -> usize {
        self.head.len() + self.tail.len()
    }

    /// Bytes of the stream that are in the hole.
    fn missing(&self) -> u64 {
        self.total - self.kept() as u64
    }

    /// The bytes that were kept, and the hole in them. What UTF-8 the hole cut in the middle of a character goes too.
    pub(crate) fn finish(mut self) -> Captured {
        let missing = self.missing();
        let mut gap = None;
        if missing > 0 {
            let head_cut = incomplete_end(&self.head);
            self.head.truncate(self.head.len() - head_cut);
            let tail_cut = self.tail.iter().take(3).take_while(|b| **b & 0xc0 == 0x80).count();
            self.tail.drain(..tail_cut);
            let bytes = missing + (head_cut + tail_cut) as u64;
            gap = Some(Gap { offset: self.head.len() as u64, bytes });
        }
        self.head.extend(self.tail.drain(..));
        Captured { bytes: self.head, gap, shares: self.shares }
    }
}

/// What was captured of a stream, and its part of the pool.
pub(crate) struct Captured {
    pub(crate) bytes: Vec<u8>,
    pub(crate) gap: Option<Gap>,
    pub(crate) shares: Vec<Share>,
}

/// Bytes at the end that begin a UTF-8 character and do not finish it; 0 where the end is no UTF-8 anyway.
pub(crate) fn incomplete_end(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let byte = bytes[bytes.len() - back];
        let needs = match byte {
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            0x80..=0xbf => continue,
            _ => return 0,
        };
        return if needs > back { back } else { 0 };
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn capture(limit: u64, pieces: &[&[u8]]) -> Captured {
        let mut capture = Capture::new(limit, &Arc::default());
        pieces.iter().for_each(|piece| capture.push(piece));
        capture.finish()
    }

    #[test]
    fn what_fits_is_kept_whole() {
        let captured = capture(10, &[b"01234", b"56789"]);
        assert_eq!(captured.bytes, b"0123456789");
        assert_eq!(captured.gap, None);
    }

    #[test]
    fn head_and_tail_are_kept_and_the_hole_is_named() {
        let captured = capture(6, &[b"0123456", b"789"]);
        assert_eq!(captured.bytes, b"012789");
        assert_eq!(captured.gap, Some(Gap { offset: 3, bytes: 4 }));
    }

    #[test]
    fn a_hole_does_not_cut_characters() {
        let captured = capture(6, &["éééééé".as_bytes()]);
        assert_eq!(captured.bytes, "éé".as_bytes());
        assert_eq!(captured.gap, Some(Gap { offset: 2, bytes: 8 }));
    }

    #[test]
    fn a_full_pool_keeps_less_and_says_so() {
        let pool: Arc<Pool> = Arc::default();
        let all = pool.take(POOL - STEP).unwrap();
        let mut capture = Capture::new(MOST_CAPTURED, &pool);
        let input: Vec<u8> = (0..=255u8).cycle().take(4 * STEP).collect();
        input.chunks(1000).for_each(|chunk| capture.push(chunk));
        let captured = capture.finish();
        assert!(captured.bytes.len() <= STEP);
        assert!(captured.gap.is_some());
        drop(captured);
        drop(all);
        assert!(pool.take(POOL).is_some());
    }

    proptest! {
        #[test]
        fn kept_bytes_and_gap_make_up_the_stream(
            limit in 0u64..40,
            pieces in proptest::collection::vec(proptest::collection::vec(0u8..128, 0..20), 0..10),
        ) {
            let whole: Vec<u8> = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let captured = capture(limit, &pieces);
            prop_assert!(captured.bytes.len() as u64 <= limit);
            let gap = captured.gap.unwrap_or_default();
            prop_assert_eq!(captured.bytes.len() as u64 + gap.bytes, whole.len() as u64);
            prop_assert_eq!(captured.gap.is_some(), whole.len() as u64 > limit);
            let at = usize::try_from(gap.offset).unwrap();
            prop_assert_eq!(&captured.bytes[..at], &whole[..at]);
            let tail = &captured.bytes[at..];
            prop_assert!(whole.ends_with(tail));
        }
    }
}
