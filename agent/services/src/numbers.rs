//! The numbers under which service ports and endpoints are counted.
use crate::changes::Changes;
use crate::existing::Existing;
use datapath_abi::{COUNT_PAGE, COUNT_PAGES, COUNT_SHARDS, CountNumber};

/// Numbers that the array of counts has room for, whatever the number of CPUs. Whoever comes later is not counted.
const MOST: u32 = (COUNT_PAGE >> COUNT_SHARDS) * COUNT_PAGES;

/// Gives numbers out, low ones first, and again once what was counted under them is cleared.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// All below were given out once.
    next: u32,
    free: Vec<CountNumber>,
    /// Given back in the plan under way: cleared when it is carried out, and free from the next one on.
    returned: Vec<CountNumber>,
}

impl Numbers {
    /// Goes on after those that stand in the maps.
    pub fn new(existing: &Existing) -> Self {
        let fronts = existing.frontends.values().map(|v| v.number);
        let backends = existing.backends.values().map(|b| b.number);
        Self {
            next: fronts.chain(backends).map(|n| n.0).max().unwrap_or(0) + 1,
            free: Vec::new(),
            returned: Vec::new(),
        }
    }

    /// Starts again from what stands in the maps; numbers that this planner has given out are not forgotten, and found
    /// by [`Self::sweep`].
    pub fn restart(&mut self, existing: &Existing) {
        let next = self.next.max(Self::new(existing).next);
        *self = Self {
            next,
            free: Vec::new(),
            returned: Vec::new(),
        };
    }

    /// A number that nobody has.
    pub fn take(&mut self) -> CountNumber {
        if let Some(number) = self.free.pop() {
            return number;
        }
        if self.next >= MOST {
            return CountNumber::NONE;
        }
        self.next += 1;
        CountNumber(self.next - 1)
    }

    /// The number's owner is gone.
    pub fn give_back(&mut self, number: CountNumber) {
        if number != CountNumber::NONE {
            self.returned.push(number);
        }
    }

    /// After a start: whatever nobody has is free. What an earlier agent did not come to clear is cleared now.
    pub fn sweep(&mut self, used: impl IntoIterator<Item = CountNumber>, out: &mut Changes) {
        let mut is_used = vec![false; self.next as usize];
        for number in used {
            if let Some(is_used) = is_used.get_mut(number.0 as usize) {
                *is_used = true;
            }
        }
        let unused = (1..self.next).filter(|n| !is_used[*n as usize]);
        self.returned = unused.map(CountNumber).collect();
        out.unused_numbers = Some(CountNumber(self.next));
    }

    /// The plan is complete.
    pub fn settle(&mut self, out: &mut Changes) {
        out.numbers = self.next;
        out.gone_numbers.clone_from(&self.returned);
        // Low numbers first: they share pages with those in use.
        self.free.append(&mut self.returned);
        if !out.gone_numbers.is_empty() {
            self.free.sort_unstable_by(|a, b| b.cmp(a));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_given_again_only_after_the_plan_that_clears_it() {
        let mut numbers = Numbers::new(&Existing::default());
        let (first, second) = (numbers.take(), numbers.take());
        numbers.give_back(first);
        assert_ne!(numbers.take(), first);
        let mut out = Changes::default();
        numbers.settle(&mut out);
        assert_eq!(out.gone_numbers, [first]);
        assert_eq!(numbers.take(), first);
        assert_eq!((first.0, second.0), (1, 2));
    }

    #[test]
    fn after_a_start_all_that_nobody_has_is_cleared() {
        let mut numbers = Numbers::new(&Existing::default());
        let all: Vec<_> = (0..5).map(|_| numbers.take()).collect();
        let mut out = Changes::default();
        numbers.sweep([all[0], all[3]], &mut out);
        numbers.settle(&mut out);
        assert_eq!(out.gone_numbers, [all[1], all[2], all[4]]);
        assert_eq!(out.unused_numbers, Some(CountNumber(6)));
        assert_eq!(numbers.take(), all[1]);
    }
}
