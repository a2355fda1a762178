//! A set of numbers from which free ones are taken, at a cost that does not grow with how many are taken.

/// Numbers `0..size`, each free or taken. The lower band is kept for numbers that are asked for by name and is drawn
/// from only when the upper one is full, as upstream does for service addresses and node ports.
pub(super) struct Pool {
    words: Vec<u64>,
    size: u64,
    band: u64,
    taken: u64,
}

impl Pool {
    /// A pool with everything free. `band` is the size of the lower band.
    pub(super) fn new(size: u64, band: u64) -> Self {
        let words = usize::try_from(size.div_ceil(64)).unwrap_or(usize::MAX);
        Self {
            words: vec![0; words],
            size,
            band: band.min(size),
            taken: 0,
        }
    }

    /// How many numbers there are.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Takes this number; false when it is taken already or out of range.
    pub(super) fn take(&mut self, number: u64) -> bool {
        let Some((word, bit)) = self.place(number) else {
            return false;
        };
        if self.words[word] & bit != 0 {
            return false;
        }
        self.words[word] |= bit;
        self.taken += 1;
        true
    }

    /// Gives a number back.
    pub(super) fn free(&mut self, number: u64) {
        if let Some((word, bit)) = self.place(number)
            && self.words[word] & bit != 0
        {
            self.words[word] &= !bit;
            self.taken -= 1;
        }
    }

    /// Takes any free number, the search beginning at a random place; `None` when all are taken.
    pub(super) fn draw(&mut self, random: u64) -> Option<u64> {
        let (upper, lower) = (self.band..self.size, 0..self.band);
        let found = self.find(upper, random).or_else(|| self.find(lower, random))?;
        self.take(found).then_some(found)
    }

    fn find(&self, range: std::ops::Range<u64>, random: u64) -> Option<u64> {
        let length = range.end.checked_sub(range.start).filter(|l| *l > 0)?;
        let start = range.start + random % length;
        self.scan(start, range.end)
            .or_else(|| self.scan(range.start, start))
    }

    /// The first free number in `from..to`; a full word of 64 is skipped at once.
    fn scan(&self, from: u64, to: u64) -> Option<u64> {
        let mut at = from;
        while at < to {
            let (word, bit) = self.place(at)?;
            if self.words[word] == u64::MAX {
                at = (at / 64 + 1) * 64;
            } else if self.words[word] & bit == 0 {
                return Some(at);
            } else {
                at += 1;
            }
        }
        None
    }

    fn place(&self, number: u64) -> Option<(usize, u64)> {
        let word = usize::try_from(number / 64).ok().filter(|_| number < self.size)?;
        Some((word, 1 << (number % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_drawn_once_and_the_lower_band_last() {
        let mut pool = Pool::new(200, 16);
        let drawn: Vec<u64> = (0..200).map(|i| pool.draw(i * 7919).unwrap()).collect();
        assert!(drawn[..184].iter().all(|n| *n >= 16));
        let distinct: std::collections::BTreeSet<_> = drawn.iter().collect();
        assert_eq!(distinct.len(), 200);
        assert_eq!(pool.draw(1), None);
        pool.free(5);
        assert_eq!(pool.draw(1), Some(5));
    }

    #[test]
    fn a_taken_number_or_one_outside_cannot_be_taken() {
        let mut pool = Pool::new(10, 0);
        assert!(pool.take(3) && !pool.take(3) && !pool.take(10));
        pool.free(3);
        assert!(pool.take(3));
    }
}
