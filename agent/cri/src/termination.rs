//! The message a container leaves when it ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Most bytes of a message that are read (Kubernetes documentation, "Determine the Reason for Pod Failure").
const LONGEST_MESSAGE: u64 = 4096;
/// Most bytes and lines of the log that stand in for it.
const LONGEST_TAIL: u64 = 2048;
const MOST_LINES: usize = 80;

/// The message in the file at `path`; none when it is empty or cannot be read.
#[must_use]
pub fn message(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(LONGEST_MESSAGE)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned()).filter(|t| !t.is_empty())
}

/// The end of a CRI log, without its time stamps.
#[must_use]
pub fn log_tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // Lines carry about 40 bytes of prefix; four times the wanted length is enough to cut from.
    file.seek(SeekFrom::Start(length.saturating_sub(4 * LONGEST_TAIL)))
        .ok()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter_map(|l| l.splitn(4, ' ').nth(3)).collect();
    let tail = lines[lines.len().saturating_sub(MOST_LINES)..].join("\n");
    let from = tail.len().saturating_sub(LONGEST_TAIL as usize);
    let from = (from..=tail.len()).find(|i| tail.is_char_boundary(*i))?;
    Some(tail[from..].to_owned()).filter(|t| !t.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_cut_at_four_kibibytes_and_an_empty_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("m");
        std::fs::write(&file, "x".repeat(5000)).unwrap();
        assert_eq!(message(&file).unwrap().len(), 4096);
        std::fs::write(&file, "").unwrap();
        assert_eq!(message(&file), None);
    }

    #[test]
    fn the_tail_of_a_log_has_no_time_stamps_and_at_most_eighty_lines() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("l");
        let text: String = (0..100)
            .map(|n| format!("2026-01-01T00:00:00Z stdout F l{n}\n"))
            .collect();
        std::fs::write(&file, text).unwrap();
        let tail = log_tail(&file).unwrap();
        assert!(tail.starts_with("l20\nl21") && tail.ends_with("l99"), "{tail}");
    }
}
