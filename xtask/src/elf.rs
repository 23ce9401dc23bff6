//! Reads just enough of an ELF file (elf(5)) to tell whether it is a static program for the machine it should be for.
//! Pure: bytes in, facts out.

use anyhow::{Context, Result, ensure};

const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// Refuses anything but a little-endian program for `machine` (`e_machine`) that needs no interpreter and no library.
pub(crate) fn check_static(file: &[u8], machine: u16) -> Result<()> {
    let elf = Elf::parse(file)?;
    ensure!(elf.machine == machine, "is for ELF machine {}, not {machine}", elf.machine);
    for segment in elf.segments()? {
        ensure!(segment.kind != PT_INTERP, "asks for an interpreter (PT_INTERP): it is not static");
        if segment.kind == PT_DYNAMIC {
            let needed = elf.dynamic_tags(&segment)?.into_iter().filter(|&tag| tag == DT_NEEDED).count();
            ensure!(needed == 0, "needs {needed} shared libraries (DT_NEEDED): it is not static");
        }
    }
    Ok(())
}

struct Elf<'a> {
    bytes: &'a [u8],
    wide: bool,
    machine: u16,
}

struct Segment {
    kind: u32,
    offset: usize,
    size: usize,
}

impl<'a> Elf<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self> {
        ensure!(bytes.starts_with(b"\x7fELF"), "is not an ELF file");
        let wide = match bytes.get(4) {
            Some(1) => false,
            Some(2) => true,
            other => anyhow::bail!("has ELF class {other:?}"),
        };
        ensure!(bytes.get(5) == Some(&1), "is not little-endian");
        let mut elf = Self { bytes, wide, machine: 0 };
        let kind = elf.number(16, 2)?;
        ensure!(kind == 2 || kind == 3, "is no program: ELF type {kind}");
        elf.machine = u16::try_from(elf.number(18, 2)?)?;
        Ok(elf)
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        let (table, entry_size, count) = if self.wide {
            (self.number(32, 8)?, self.number(54, 2)?, self.number(56, 2)?)
        } else {
            (self.number(28, 4)?, self.number(42, 2)?, self.number(44, 2)?)
        };
        let mut segments = Vec::new();
        for index in 0..count {
            let at = usize::try_from(table.saturating_add(index * entry_size))?;
            let kind = u32::try_from(self.number(at, 4)?)?;
            let (offset, size) = if self.wide {
                (self.number(at + 8, 8)?, self.number(at + 32, 8)?)
            } else {
                (self.number(at + 4, 4)?, self.number(at + 16, 4)?)
            };
            segments.push(Segment { kind, offset: usize::try_from(offset)?, size: usize::try_from(size)? });
        }
        Ok(segments)
    }

    /// The tags of a dynamic section up to its end mark.
    fn dynamic_tags(&self, segment: &Segment) -> Result<Vec<u64>> {
        let word = if self.wide { 8 } else { 4 };
        let end = segment.offset.saturating_add(segment.size);
        ensure!(end <= self.bytes.len(), "is cut short");
        let mut tags = Vec::new();
        for entry in 0..segment.size / (2 * word) {
            let tag = self.number(segment.offset.saturating_add(entry * 2 * word), word)?;
            if tag == DT_NULL {
                break;
            }
            tags.push(tag);
        }
        Ok(tags)
    }

    fn number(&self, at: usize, length: usize) -> Result<u64> {
        let end = at.checked_add(length).context("has an offset beyond any file")?;
        let bytes = self.bytes.get(at..end).context("is cut short")?;
        Ok(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A 64-bit program for machine 62 with these segments: kind and content.
    fn program(segments: &[(u32, &[u8])]) -> Vec<u8> {
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16] = 2;
        file[18] = 62;
        file[32] = 64;
        file[54] = 56;
        file[56] = segments.len() as u8;
        let mut offset = 64 + 56 * segments.len();
        for (kind, content) in segments {
            let mut header = [0; 56];
            header[..4].copy_from_slice(&kind.to_le_bytes());
            header[8..16].copy_from_slice(&(offset as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            file.extend_from_slice(&header);
            offset += content.len();
        }
        for (_, content) in segments {
            file.extend_from_slice(content);
        }
        file
    }

    fn dynamic(tags: &[u64]) -> Vec<u8> {
        tags.iter().flat_map(|tag| [tag.to_le_bytes(), [0; 8]].concat()).collect()
    }

    #[test]
    fn a_static_program_passes_and_so_does_a_static_pie() {
        check_static(&program(&[(1, b"text")]), 62).unwrap();
        check_static(&program(&[(1, b"text"), (PT_DYNAMIC, &dynamic(&[25, 0, DT_NEEDED]))]), 62).unwrap();
    }

    #[test]
    fn an_interpreter_a_library_and_another_machine_are_refused() {
        let refused = |file: &[u8], machine| check_static(file, machine).unwrap_err().to_string();
        assert!(refused(&program(&[(PT_INTERP, b"/lib/ld.so\0")]), 62).contains("PT_INTERP"));
        assert!(refused(&program(&[(PT_DYNAMIC, &dynamic(&[5, DT_NEEDED, 0]))]), 62).contains("DT_NEEDED"));
        assert!(refused(&program(&[]), 183).contains("machine 62"));
    }

    #[test]
    fn what_is_cut_short_or_no_elf_is_refused() {
        let whole = program(&[(PT_DYNAMIC, &dynamic(&[5, 6, 7]))]);
        for length in 0..whole.len() {
            assert!(check_static(&whole[..length], 62).is_err(), "{length} bytes passed");
        }
        assert!(check_static(b"#!/bin/sh\n", 62).is_err());
    }

    #[test]
    fn the_program_that_runs_this_test_is_not_static() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let machine = Elf::parse(&own).unwrap().machine;
        assert!(check_static(&own, machine).unwrap_err().to_string().contains("not static"));
    }
}
