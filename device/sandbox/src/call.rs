// SPDX-License-Identifier: Apache-2.0 OR MIT

//! System calls as the rules name them.

use syscalls::Sysno;

/// Greatest number of conditions on the arguments of one call.
const MAX_CONDITIONS: usize = 2;

/// A system call that a kind of thread may make, with conditions on its arguments.
///
/// A list may have a call several times: then one of the entries has to match. The conditions see
/// the values of the arguments, not the memory that a pointer refers to (seccomp(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    number: Sysno,
    conditions: [Option<Condition>; MAX_CONDITIONS],
}

/// `argument & mask == value`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which argument, 0 to 5.
    pub(crate) index: u8,
    pub(crate) mask: u64,
    pub(crate) value: u64,
}

impl Call {
    /// The call with any arguments.
    pub const fn any(number: Sysno) -> Self {
        Self {
            number,
            conditions: [None; MAX_CONDITIONS],
        }
    }

    /// The calls of a list, each with any arguments.
    pub const fn all<const N: usize>(numbers: [Sysno; N]) -> [Self; N] {
        let mut calls = [Self::any(Sysno::read); N];
        let mut index = 0;
        while index < N {
            calls[index] = Self::any(numbers[index]);
            index += 1;
        }
        calls
    }

    /// With one more condition: the bits `mask` of the argument number `index`, counted from 0,
    /// are `value`.
    ///
    /// # Panics
    ///
    /// With more than two conditions, an argument after the sixth, or a value with other bits than
    /// the mask. In a constant this is an error of the compiler.
    pub const fn when(mut self, index: u8, mask: u64, value: u64) -> Self {
        assert!(index < 6 && value & !mask == 0);
        let condition = Some(Condition { index, mask, value });
        match self.conditions {
            [None, _] => self.conditions[0] = condition,
            [_, None] => self.conditions[1] = condition,
            [Some(_), Some(_)] => panic!("a call has two conditions at most"),
        }
        self
    }

    /// The call.
    pub const fn number(&self) -> Sysno {
        self.number
    }

    pub(crate) fn conditions(&self) -> impl Iterator<Item = &Condition> {
        self.conditions.iter().flatten()
    }
}
