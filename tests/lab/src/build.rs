//! Builds other than the present one, to go up and down between.
use anyhow::{Context, Result, ensure};
use std::io::Read as _;

/// `ELF64` header and section header fields that are needed here, by their offsets (elf(5)).
const SECTIONS_AT: usize = 0x28;
const SECTION_SIZE: usize = 0x3a;
const SECTION_COUNT: usize = 0x3c;
const FLAGS: usize = 0x08;
const OFFSET: usize = 0x18;
const SIZE: usize = 0x20;
const EXECUTABLE: u64 = 4;

/// eBPF instructions (`linux/bpf.h`): a constant into all 64 bits of a register, into its lower 32 (which clears the others), and
/// the one that takes two places.
const MOVE_64: u8 = 0xb7;
const MOVE_32: u8 = 0xb4;
const LOAD_64: u8 = 0x18;

fn number(bytes: &[u8], at: usize, length: usize) -> Result<u64> {
    let mut word = [0; 8];
    let part = bytes.get(at..at + length).context("the object is cut off")?;
    word[..length].copy_from_slice(part);
    Ok(u64::from_le_bytes(word))
}

/// An object that does the same in other instructions, in every program: small constants are moved by another instruction. To the
/// kernel these are programs of another build.
pub fn other_build(object: &[u8]) -> Result<Vec<u8>> {
    let mut other = object.to_vec();
    let table = number(object, SECTIONS_AT, 8)? as usize;
    let size = number(object, SECTION_SIZE, 2)? as usize;
    let mut changed = 0;
    for section in 0..number(object, SECTION_COUNT, 2)? as usize {
        let header = table + section * size;
        if number(object, header + FLAGS, 8)? & EXECUTABLE != 0 {
            let (from, length) = (
                number(object, header + OFFSET, 8)?,
                number(object, header + SIZE, 8)?,
            );
            let code = other.get_mut(from as usize..(from + length) as usize);
            changed += change(code.context("the object is cut off")?);
        }
    }
    ensure!(
        changed > 100,
        "only {changed} instructions of this object could be changed"
    );
    Ok(other)
}

/// Changes the instructions of one section; tells how many.
fn change(code: &mut [u8]) -> usize {
    let mut changed = 0;
    let mut skip = false;
    for instruction in code.chunks_exact_mut(8) {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = instruction[0] == LOAD_64;
        // A constant that is not negative: the upper half of the register is zero either way.
        if instruction[0] == MOVE_64 && instruction[7] & 0x80 == 0 {
            instruction[0] = MOVE_32;
            changed += 1;
        }
    }
    changed
}

/// The last object of map layout 1; `fixtures/README.md` tells where it is from.
pub fn layout_1_object() -> Result<Vec<u8>> {
    let packed = include_bytes!("../fixtures/layout-1.o.gz");
    let mut object = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut object)?;
    Ok(object)
}
