// SPDX-License-Identifier: GPL-2.0

//! A vector of bounded length without an allocation.

use core::mem::MaybeUninit;

/// Up to `N` values, in the order in which they were added. The places are not initialised before
/// that, so an empty vector costs nothing, whatever its capacity.
///
/// # Invariants
///
/// The first `len` places are initialised, and `len` is at most `N`.
pub(crate) struct ArrayVec<T, const N: usize> {
    places: [MaybeUninit<T>; N],
    len: usize,
}

impl<T, const N: usize> ArrayVec<T, N> {
    /// An empty vector.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        // INVARIANT: No place is initialised.
        Self {
            places: [const { MaybeUninit::uninit() }; N],
            len: 0,
        }
    }

    /// The number of values.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The next free place. `None` if the vector is full.
    #[inline(always)]
    pub(crate) fn vacant(&mut self) -> Option<Vacant<'_, T>> {
        let place = self.places.get_mut(self.len)?;
        // INVARIANT: The place behind the last value of the vector with this length.
        Some(Vacant {
            place,
            len: &mut self.len,
        })
    }

    /// The values.
    #[inline(always)]
    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: By the type invariant these places exist and are initialised.
        unsafe { core::slice::from_raw_parts_mut(self.places.as_mut_ptr().cast(), self.len) }
    }

    /// Takes all values out, in their order. Those that the iterator has not returned are dropped
    /// with it, or leaked if it is leaked.
    #[inline(always)]
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        let len = self.len;
        // INVARIANT: The vector has no values from here on; `Drain` owns the first `len` places.
        self.len = 0;
        Drain {
            places: self.places.get_mut(..len).unwrap_or_default(),
        }
    }
}

impl<T, const N: usize> Drop for ArrayVec<T, N> {
    #[inline(always)]
    fn drop(&mut self) {
        // Mostly its values were taken out.
        if self.len > 0 {
            drop(self.drain());
        }
    }
}

/// A free place of an [`ArrayVec`].
///
/// # Invariants
///
/// `place` is the first place behind the `len` values of a vector.
pub(crate) struct Vacant<'a, T> {
    place: &'a mut MaybeUninit<T>,
    len: &'a mut usize,
}

impl<T> Vacant<'_, T> {
    /// Adds `value` to the vector.
    #[inline(always)]
    pub(crate) fn fill(self, value: T) {
        self.place.write(value);
        // INVARIANT: The place was just initialised.
        *self.len += 1;
    }
}

/// # Invariants
///
/// All places are initialised, and the iterator owns their values.
struct Drain<'a, T> {
    places: &'a mut [MaybeUninit<T>],
}

impl<T> Iterator for Drain<'_, T> {
    type Item = T;

    #[inline(always)]
    fn next(&mut self) -> Option<T> {
        let (first, rest) = core::mem::take(&mut self.places).split_first_mut()?;
        // INVARIANT: Without the place whose value is returned.
        self.places = rest;
        // SAFETY: By the type invariant the value is initialised and ours, and nobody reads the
        // place again.
        Some(unsafe { first.assume_init_read() })
    }
}

impl<T> Drain<'_, T> {
    /// Drops the values that nobody has taken.
    #[cold]
    fn drop_rest(&mut self) {
        self.by_ref().for_each(drop);
    }
}

impl<T> Drop for Drain<'_, T> {
    #[inline(always)]
    fn drop(&mut self) {
        if !self.places.is_empty() {
            self.drop_rest();
        }
    }
}

#[kernel::macros::kunit_tests(ringbar_array_vec)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// Counts its drops.
    struct Counted<'a>(u32, &'a Cell<u32>);

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.1.set(self.1.get() + 1);
        }
    }

    fn filled(drops: &Cell<u32>, count: u32) -> ArrayVec<Counted<'_>, 4> {
        let mut vec = ArrayVec::new();
        for n in 0..count {
            if let Some(place) = vec.vacant() {
                place.fill(Counted(n, drops));
            }
        }
        vec
    }

    #[test]
    fn values_are_dropped_once() {
        let drops = Cell::new(0);
        drop(filled(&drops, 0));
        assert_eq!(drops.get(), 0);
        drop(filled(&drops, 3));
        assert_eq!(drops.get(), 3);
        let mut vec = filled(&drops, 4);
        // One is taken, and the others are dropped with the iterator.
        assert!(vec.drain().next().is_some_and(|first| first.0 == 0));
        assert_eq!(drops.get(), 7);
        drop(vec);
        assert_eq!(drops.get(), 7);
    }

    #[test]
    fn a_full_vector_has_no_place() {
        let drops = Cell::new(0);
        let mut vec = filled(&drops, 4);
        assert!(vec.vacant().is_none());
        assert_eq!(vec.len(), 4);
        vec.as_mut_slice()[3].0 = 7;
        assert!(vec.drain().map(|value| value.0).eq([0, 1, 2, 7]));
        assert_eq!(vec.len(), 0);
        assert!(vec.vacant().is_some());
    }
}
