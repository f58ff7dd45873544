// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The experiments and programs of the documents are well-formed: each chapter has an experiment,
//! and each program compiles against the driver's header.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ringbar_runner::book::{Book, COMPILER_ARGUMENTS};

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_chapter_has_an_experiment() {
    let book = Book::read(&checkout()).unwrap();
    let mut chapters = 0;
    for entry in fs::read_dir(checkout().join("docs/learn")).unwrap() {
        let path = entry.unwrap().path();
        let page = path.file_stem().unwrap().to_str().unwrap();
        let mut experiments = book.experiments.iter();
        let prefix = format!("{page}::");
        assert!(
            experiments.any(|experiment| experiment.name.starts_with(&prefix)),
            "{page} has no experiment"
        );
        chapters += 1;
    }
    assert!(chapters > 8, "only {chapters} chapters");
}

#[test]
fn programs_compile() {
    let book = Book::read(&checkout()).unwrap();
    assert!(book.programs.len() > 2, "{} programs", book.programs.len());
    let directory = tempfile::tempdir().unwrap();
    for program in book.programs {
        let source = directory.path().join(format!("{}.c", program.name));
        fs::write(&source, &program.source).unwrap();
        let output = Command::new("cc")
            .args(COMPILER_ARGUMENTS)
            .arg("-fsyntax-only")
            .arg("-I")
            .arg(checkout().join("driver/uapi"))
            .arg(&source)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {errors}", program.name);
    }
}
