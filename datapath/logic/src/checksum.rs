//! The Internet checksum (RFC 1071) and its incremental change (RFC 1624).

/// Adds 16-bit words in network order to a running sum. An odd last byte counts as if a zero followed.
#[inline(always)]
pub fn add<const N: usize>(mut sum: u32, bytes: &[u8; N]) -> u32 {
    let mut i = 0;
    while i + 1 < N {
        sum += u16::from_be_bytes([bytes[i], bytes[i + 1]]) as u32;
        i += 2;
    }
    if i < N {
        sum += (bytes[i] as u32) << 8;
    }
    sum
}

/// Adds the words of `bytes[from..to]`; both ends are even.
#[inline(always)]
pub fn add_range<const N: usize>(mut sum: u32, bytes: &[u8; N], from: usize, to: usize) -> u32 {
    let mut i = from;
    while i + 1 < to {
        sum += u16::from_be_bytes([bytes[i], bytes[i + 1]]) as u32;
        i += 2;
    }
    sum
}

/// Folds the carries into 16 bits. Three rounds suffice for any 32-bit sum.
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    let s = (s & 0xffff) + (s >> 16);
    ((s & 0xffff) + (s >> 16)) as u16
}

/// The checksum of a running sum, as it stands in the header.
#[inline(always)]
pub const fn finish(sum: u32) -> [u8; 2] {
    (!fold(sum)).to_be_bytes()
}

/// The checksum after `from` became `to` somewhere in what it covers.
#[inline(always)]
pub fn update<const N: usize>(check: [u8; 2], from: &[u8; N], to: &[u8; N]) -> [u8; 2] {
    let mut sum = !u16::from_be_bytes(check) as u32 & 0xffff;
    let mut i = 0;
    while i + 1 < N {
        sum += !u16::from_be_bytes([from[i], from[i + 1]]) as u32 & 0xffff;
        sum += u16::from_be_bytes([to[i], to[i + 1]]) as u32;
        i += 2;
    }
    finish(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071_sums_up() {
        let sum = add(0, &[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(fold(sum), 0xddf2);
    }

    #[test]
    fn an_incremental_update_equals_a_new_sum() {
        let mut words = [0x45u8, 0, 1, 2, 3, 4, 0xff, 0xfe, 10, 0, 0, 1];
        let before = finish(add(0, &words));
        let from: [u8; 4] = [10, 0, 0, 1];
        let to: [u8; 4] = [192, 168, 7, 9];
        words[8..].copy_from_slice(&to);
        assert_eq!(update(before, &from, &to), finish(add(0, &words)));
    }
}
