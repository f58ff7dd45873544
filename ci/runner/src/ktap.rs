// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parses test results in KTAP version 1, the format of the kernel's own tests
//! (<https://docs.kernel.org/dev-tools/ktap.html>).
//!
//! The parser works line by line while the guest still writes, so that each result is
//! known at once and results before a crash are kept.

/// Outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`.
    Passed,
    /// `not ok`, or a subtest that failed or is missing.
    Failed,
    /// `ok … # SKIP reason`.
    Skipped(String),
}

/// Result of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// Name of the test.
    pub name: String,
    /// Outcome.
    pub outcome: Outcome,
    /// Output between the previous result line and this one.
    pub diagnostics: Vec<String>,
}

/// Errors of the text as a whole.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// There is no `KTAP version 1`.
    #[error("no line `KTAP version 1`")]
    NoVersion,
    /// There is no `1..N`.
    #[error("no plan `1..N`")]
    NoPlan,
    /// A second `1..N`.
    #[error("a second plan, `{0}`")]
    SecondPlan(String),
    /// Fewer or more results than planned.
    #[error("{planned} tests were planned, {seen} reported")]
    Incomplete {
        /// N of the plan.
        planned: usize,
        /// Number of results.
        seen: usize,
    },
    /// Results must be numbered from 1 on.
    #[error("result {found} where {expected} should be")]
    Number {
        /// The number that comes next.
        expected: usize,
        /// The number that came.
        found: usize,
    },
    /// `Bail out!`
    #[error("the test program gave up: {0}")]
    BailOut(String),
    /// The text ended within the subtests of a test.
    #[error("the output ended within a test with subtests")]
    OpenSubtests,
}

/// Results of one level of nesting.
#[derive(Debug, Default)]
struct Level {
    version: bool,
    plan: Option<usize>,
    seen: usize,
    failed: usize,
    problems: Vec<Problem>,
}

impl Level {
    /// The errors of this level after its last line.
    fn finish(mut self) -> Vec<Problem> {
        if !self.version {
            self.problems.push(Problem::NoVersion);
        }
        match self.plan {
            None => self.problems.push(Problem::NoPlan),
            Some(planned) if planned != self.seen => self.problems.push(Problem::Incomplete {
                planned,
                seen: self.seen,
            }),
            Some(_) => {}
        }
        self.problems
    }
}

/// Incremental parser of KTAP.
#[derive(Debug, Default)]
pub struct Parser {
    /// The open levels; the first is that of the text itself.
    levels: Vec<Level>,
    diagnostics: Vec<String>,
}

/// Indentation of one level.
const INDENT: &str = "  ";

impl Parser {
    /// A parser at the start of the text.
    pub fn new() -> Self {
        Self {
            levels: vec![Level::default()],
            diagnostics: Vec::new(),
        }
    }

    /// Parses one line, without its line end. Returns the result of a test of the
    /// outermost level when the line completes it.
    pub fn line(&mut self, line: &str) -> Option<TestResult> {
        let (depth, text) = split_indent(line);
        if let Some(result) = parse_result(text)
            && depth < self.levels.len()
        {
            return self.result(depth, result, line);
        }
        if is_version(text) && depth == self.levels.len() {
            self.levels.push(Level::default());
        }
        // A line that belongs to no open level is output of the test.
        match self.levels.get_mut(depth) {
            Some(level) if is_version(text) => level.version = true,
            Some(level) => {
                if let Some(planned) = parse_plan(text) {
                    if level.plan.replace(planned).is_some() {
                        level.problems.push(Problem::SecondPlan(text.to_owned()));
                    }
                } else if let Some(reason) = text.strip_prefix("Bail out!") {
                    level
                        .problems
                        .push(Problem::BailOut(reason.trim().to_owned()));
                } else {
                    self.diagnostic(line);
                }
            }
            None => self.diagnostic(line),
        }
        None
    }

    fn diagnostic(&mut self, line: &str) {
        let text = line.trim_start();
        let text = text.strip_prefix("# ").unwrap_or(text);
        // The names of subtests come with their results.
        if !text.is_empty() && !text.starts_with("Subtest: ") {
            self.diagnostics.push(text.to_owned());
        }
    }

    fn result(&mut self, depth: usize, line: ResultLine<'_>, raw: &str) -> Option<TestResult> {
        let ResultLine {
            number,
            name,
            mut outcome,
        } = line;
        // The levels below belong to this test and end with it.
        for level in self.levels.drain(depth + 1..) {
            if level.failed > 0 {
                outcome = Outcome::Failed;
            }
            for problem in level.finish() {
                outcome = Outcome::Failed;
                self.diagnostics.push(format!("subtests: {problem}"));
            }
        }
        let level = self.levels.last_mut()?;
        level.seen += 1;
        if number != level.seen {
            level.problems.push(Problem::Number {
                expected: level.seen,
                found: number,
            });
        }
        if outcome == Outcome::Failed {
            level.failed += 1;
        }
        if depth > 0 {
            // A failed subtest is shown with its test.
            if outcome == Outcome::Failed {
                self.diagnostics.push(raw.trim_start().to_owned());
            }
            return None;
        }
        Some(TestResult {
            name: name.to_owned(),
            outcome,
            diagnostics: std::mem::take(&mut self.diagnostics),
        })
    }

    /// Output after the last result so far.
    pub fn pending(&self) -> &[String] {
        &self.diagnostics
    }

    /// All errors of the text, after its last line.
    pub fn finish(mut self) -> Vec<Problem> {
        let mut problems = Vec::new();
        if self.levels.len() > 1 {
            problems.push(Problem::OpenSubtests);
        }
        self.levels.truncate(1);
        for level in self.levels {
            problems.extend(level.finish());
        }
        problems
    }
}

fn split_indent(line: &str) -> (usize, &str) {
    let mut depth = 0;
    let mut text = line;
    while let Some(rest) = text.strip_prefix(INDENT) {
        depth += 1;
        text = rest;
    }
    (depth, text.trim_end())
}

fn is_version(text: &str) -> bool {
    text == "KTAP version 1"
}

fn parse_plan(text: &str) -> Option<usize> {
    let count = text.strip_prefix("1..")?;
    // A directive may follow with the reason for an empty plan.
    count.split_ascii_whitespace().next()?.parse().ok()
}

struct ResultLine<'a> {
    number: usize,
    name: &'a str,
    outcome: Outcome,
}

fn parse_result(text: &str) -> Option<ResultLine<'_>> {
    let (passed, rest) = match text.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, text.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ').unwrap_or((rest, ""));
    let number = number.parse().ok()?;
    let (name, directive) = match rest
        .split_once(" # ")
        .or(rest.strip_prefix("# ").map(|directive| ("", directive)))
    {
        Some((name, directive)) => (name, directive.trim()),
        None => (rest, ""),
    };
    let name = name.trim().trim_start_matches("- ");
    let skip = directive
        .get(..4)
        .filter(|word| word.eq_ignore_ascii_case("SKIP"))
        .map(|_| directive[4..].trim().to_owned());
    let outcome = match (passed, skip) {
        (true, Some(reason)) => Outcome::Skipped(reason),
        (true, None) => Outcome::Passed,
        (false, _) => Outcome::Failed,
    };
    Some(ResultLine {
        number,
        name,
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Vec<TestResult>, Vec<Problem>) {
        let mut parser = Parser::new();
        let results = text.lines().filter_map(|line| parser.line(line)).collect();
        (results, parser.finish())
    }

    fn outcomes(text: &str) -> Vec<(String, Outcome)> {
        let (results, _) = read(text);
        results
            .into_iter()
            .map(|result| (result.name, result.outcome))
            .collect()
    }

    #[test]
    fn plain_results_with_diagnostics() {
        let (results, problems) = read(
            "KTAP version 1\n1..3\nok 1 a\n# byte 3 is 0\n# and more\nnot ok 2 b\nok 3 - c # SKIP no device\n",
        );
        assert_eq!(problems, []);
        assert_eq!(results[0].outcome, Outcome::Passed);
        assert_eq!(results[1].outcome, Outcome::Failed);
        assert_eq!(results[1].diagnostics, ["byte 3 is 0", "and more"]);
        assert_eq!(results[2].name, "c");
        assert_eq!(results[2].outcome, Outcome::Skipped("no device".into()));
        assert_eq!(results[2].diagnostics, Vec::<String>::new());
    }

    #[test]
    fn subtests_belong_to_the_result_that_follows_them() {
        let text = "KTAP version 1\n1..2\n  KTAP version 1\n  1..2\n  ok 1 x\n  ok 2 y\nok 1 a\n\
                    \x20 KTAP version 1\n  # Subtest: b\n  1..1\n  # why\n  not ok 1 z\nok 2 b\n";
        let (results, problems) = read(text);
        assert_eq!(problems, []);
        assert_eq!(results.len(), 2);
        assert_eq!(results[0].outcome, Outcome::Passed);
        // The parent claims success, its subtest does not.
        assert_eq!(results[1].outcome, Outcome::Failed);
        assert_eq!(results[1].diagnostics, ["why", "not ok 1 z"]);
    }

    #[test]
    fn missing_subtests_fail_the_test() {
        let text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 x\nok 1 a\n";
        assert_eq!(outcomes(text), [("a".to_owned(), Outcome::Failed)]);
    }

    #[test]
    fn deeper_levels_reach_the_top() {
        let text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n    KTAP version 1\n    1..1\n    not ok 1 deep\n  ok 1 mid\nok 1 top\n";
        assert_eq!(outcomes(text), [("top".to_owned(), Outcome::Failed)]);
    }

    #[test]
    fn a_missing_plan_is_a_problem_even_if_all_passed() {
        let (_, problems) = read("KTAP version 1\nok 1 a\n");
        assert_eq!(problems, [Problem::NoPlan]);
    }

    #[test]
    fn a_crash_in_the_middle_is_a_problem() {
        let (results, problems) = read("KTAP version 1\n1..3\nok 1 a\n");
        assert_eq!(results.len(), 1);
        assert_eq!(
            problems,
            [Problem::Incomplete {
                planned: 3,
                seen: 1
            }]
        );
        let (_, problems) = read("KTAP version 1\n1..1\n  KTAP version 1\n  1..9\n  ok 1 x\n");
        assert!(problems.contains(&Problem::OpenSubtests), "{problems:?}");
    }

    #[test]
    fn nothing_at_all_is_no_success() {
        assert_eq!(read("").1, [Problem::NoVersion, Problem::NoPlan]);
    }

    #[test]
    fn numbers_must_follow_each_other() {
        let (_, problems) = read("KTAP version 1\n1..2\nok 1 a\nok 3 b\n");
        assert_eq!(
            problems,
            [Problem::Number {
                expected: 2,
                found: 3
            }]
        );
    }

    #[test]
    fn giving_up_and_planning_twice_are_problems() {
        let (_, problems) = read("KTAP version 1\n1..1\n1..1\nok 1 a\nBail out! no memory\n");
        assert_eq!(
            problems,
            [
                Problem::SecondPlan("1..1".into()),
                Problem::BailOut("no memory".into())
            ]
        );
    }

    #[test]
    fn other_output_is_kept_for_the_next_result() {
        let mut parser = Parser::new();
        for line in ["KTAP version 1", "1..1", "thread panicked", "ok so far"] {
            assert_eq!(parser.line(line), None);
        }
        assert_eq!(parser.pending(), ["thread panicked", "ok so far"]);
    }
}
