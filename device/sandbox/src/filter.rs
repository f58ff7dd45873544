// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From lists of calls to programs of seccomp(2).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use crate::call::{Call, Condition};
use crate::error::Error;

/// The instruction by which a program returns (`BPF_RET | BPF_K`, linux/bpf_common.h).
const RETURN: u16 = 0x06;

/// What becomes of a call that is not in the list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Forbidden {
    /// The thread gets SIGSYS, with this number of the thread's kind.
    Signal(u16),
    /// The kernel logs it.
    Log,
}

/// A program that allows the calls of a list.
pub(crate) fn allow(
    calls: impl IntoIterator<Item = Call>,
    forbidden: Forbidden,
) -> Result<BpfProgram, Error> {
    let action = match forbidden {
        Forbidden::Signal(_) => SeccompAction::Trap,
        Forbidden::Log => SeccompAction::Log,
    };
    let mut program = program(rules(calls)?, action, SeccompAction::Allow)?;
    if let Forbidden::Signal(kind) = forbidden {
        let trap = u32::from(SeccompAction::Trap);
        for instruction in &mut program {
            if (instruction.code, instruction.k) == (RETURN, trap) {
                // The lower half of the result comes with the signal, as `si_errno`.
                instruction.k |= u32::from(kind);
            }
        }
    }
    Ok(program)
}

/// A program by which the calls of a list fail with an error number, and which allows all others.
pub(crate) fn fail(calls: impl IntoIterator<Item = Call>, errno: i32) -> Result<BpfProgram, Error> {
    let action = SeccompAction::Errno(errno.unsigned_abs());
    program(rules(calls)?, SeccompAction::Allow, action)
}

/// The rules that match the calls of a list.
fn rules(calls: impl IntoIterator<Item = Call>) -> Result<BTreeMap<i64, Vec<SeccompRule>>, Error> {
    let mut rules: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for call in calls {
        let alternatives = rules
            .entry(call.number().id().into())
            .or_insert_with(|| Some(Vec::new()));
        let conditions: Vec<_> = call.conditions().map(condition).collect::<Result<_, _>>()?;
        match alternatives {
            // An entry without conditions covers the others.
            _ if conditions.is_empty() => *alternatives = None,
            Some(alternatives) => {
                let rule = SeccompRule::new(conditions)?;
                // Several kinds have the same.
                if !alternatives.contains(&rule) {
                    alternatives.push(rule);
                }
            }
            None => {}
        }
    }
    // To the crate, a call without rules is one that always matches.
    Ok(rules
        .into_iter()
        .map(|(number, alternatives)| (number, alternatives.unwrap_or_default()))
        .collect())
}

fn condition(condition: &Condition) -> Result<SeccompCondition, Error> {
    let &Condition { index, mask, value } = condition;
    // The upper half of an argument of 32 bits may be anything.
    let width = match u32::try_from(mask) {
        Ok(_) => SeccompCmpArgLen::Dword,
        Err(_) => SeccompCmpArgLen::Qword,
    };
    Ok(SeccompCondition::new(
        index,
        width,
        SeccompCmpOp::MaskedEq(mask),
        value,
    )?)
}

fn program(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    unmatched: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, Error> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, unmatched, matched, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use syscalls::Sysno;

    use super::*;

    const CALLS: &[Call] = &[
        Call::any(Sysno::read),
        Call::any(Sysno::prctl).when(0, 0xff, 15),
        Call::any(Sysno::prctl).when(0, 0xff, 16),
    ];

    fn returns(program: &BpfProgram) -> Vec<u32> {
        let returns = program
            .iter()
            .filter(|instruction| instruction.code == RETURN);
        returns.map(|instruction| instruction.k).collect()
    }

    #[test]
    fn a_signal_has_the_number_of_the_kind() {
        let program = allow(CALLS.iter().copied(), Forbidden::Signal(7)).unwrap();
        assert!(returns(&program).contains(&0x0003_0007));
        assert!(!returns(&program).contains(&0x0003_0000));
    }

    #[test]
    fn each_alternative_has_a_return() {
        let allowed = |calls: &[Call]| {
            let program = allow(calls.iter().copied(), Forbidden::Log).unwrap();
            let is_allow = |k: &&u32| **k == u32::from(SeccompAction::Allow);
            returns(&program).iter().filter(is_allow).count()
        };
        assert_eq!(allowed(CALLS), 3);
        // A kind and those that it starts have much in common.
        assert_eq!(allowed(&[CALLS, CALLS].concat()), 3);
        // Without conditions it covers the other two, whatever the order.
        let any = Call::any(Sysno::prctl);
        assert_eq!(allowed(&[CALLS, &[any]].concat()), 2);
        assert_eq!(allowed(&[&[any], CALLS].concat()), 2);
    }

    #[test]
    fn the_number_of_an_error_is_in_the_program() {
        let program = fail([Call::any(Sysno::clone3)], libc::ENOSYS).unwrap();
        assert!(returns(&program).contains(&(0x0005_0000 | libc::ENOSYS.unsigned_abs())));
    }
}
