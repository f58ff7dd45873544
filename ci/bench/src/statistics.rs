// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Medians, and ratios within a round.

use serde::Serialize;

/// Median and spread of some values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value; for an even number of values, the mean of the middle two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The greatest.
    pub max: f64,
}

impl Summary {
    /// The summary of `values`; `None` if there are none or one is NaN.
    pub fn of(values: &[f64]) -> Option<Self> {
        if values.iter().any(|value| value.is_nan()) {
            return None;
        }
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }

    /// The summary of the ratios of `ours` to `theirs`, each pair from one round. Rounds
    /// in which `theirs` is 0 do not count.
    pub fn of_ratios(ours: &[f64], theirs: &[f64]) -> Option<Self> {
        let ratios: Vec<_> = ours
            .iter()
            .zip(theirs)
            .filter(|(_, theirs)| **theirs != 0.0)
            .map(|(ours, theirs)| ours / theirs)
            .collect();
        Self::of(&ratios)
    }
}

/// The median of the values that are known.
pub fn median_of_known(values: &[Option<f64>]) -> Option<f64> {
    let known: Vec<_> = values.iter().copied().flatten().collect();
    Summary::of(&known).map(|summary| summary.median)
}

/// Rounds to this many digits after the point.
pub fn round(value: f64, digits: i32) -> f64 {
    let factor = 10f64.powi(digits);
    (value * factor).round() / factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_median_is_in_the_middle() {
        let summary = Summary::of(&[9.0, 1.0, 5.0]).unwrap();
        assert_eq!((summary.min, summary.median, summary.max), (1.0, 5.0, 9.0));
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
        assert_eq!(Summary::of(&[7.0]).unwrap().median, 7.0);
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
    }

    #[test]
    fn ratios_pair_what_was_measured_in_one_round() {
        // The machine was four times as fast in the second round: each ratio is 2, while
        // the medians of the rounds would say otherwise if they were mixed up.
        let ours = [200.0, 800.0, 240.0];
        let theirs = [100.0, 400.0, 120.0];
        let ratio = Summary::of_ratios(&ours, &theirs).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 2.0, 2.0));
        let ratio = Summary::of_ratios(&ours, &[100.0, 100.0, 120.0]).unwrap();
        assert_eq!((ratio.min, ratio.median, ratio.max), (2.0, 2.0, 8.0));
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        assert_eq!(Summary::of_ratios(&[1.0], &[0.0]), None);
        assert_eq!(
            Summary::of_ratios(&[1.0, 3.0], &[0.0, 1.0]).unwrap().median,
            3.0
        );
    }

    #[test]
    fn unknown_values_do_not_count() {
        assert_eq!(
            median_of_known(&[None, Some(2.0), None, Some(4.0)]),
            Some(3.0)
        );
        assert_eq!(median_of_known(&[None, None]), None);
    }

    proptest! {
        #[test]
        fn as_many_values_lie_below_the_median_as_above(
            values in proptest::collection::vec(0.0f64..1e6, 1..50)
        ) {
            let summary = Summary::of(&values).unwrap();
            let below = values.iter().filter(|value| **value < summary.median).count();
            let above = values.iter().filter(|value| **value > summary.median).count();
            prop_assert!(below <= values.len() / 2);
            prop_assert!(above <= values.len() / 2);
            prop_assert!(summary.min <= summary.median && summary.median <= summary.max);
        }
    }
}
