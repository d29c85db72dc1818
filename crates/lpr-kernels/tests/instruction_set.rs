//! The environment variable that limits the instruction set, read by a process of its own.

use lpr_kernels::instruction_set;
use std::{
    env,
    process::{Command, Output},
};

/// Runs one test of this file in a new process with this wish.
fn run_with(wish: &str) -> Output {
    let program = env::current_exe().expect("a test knows its own program");
    Command::new(program)
        .args(["the_instruction_set_is_not_above_the_wish", "--exact"])
        .env("LPR_KERNELS", wish)
        .output()
        .expect("the program of this test starts")
}

#[test]
fn the_instruction_set_is_not_above_the_wish() {
    let order = ["portable", "avx2", "avx512"];
    let place = |name: &str| order.iter().position(|&n| n == name);
    let used = place(instruction_set().name()).expect("a known name");
    if let Some(limit) = env::var("LPR_KERNELS").ok().and_then(|wish| place(&wish)) {
        assert!(used <= limit, "{} is above the wish", instruction_set());
    }
}

#[test]
fn every_wish_is_respected_in_a_process_of_its_own() {
    for wish in ["portable", "avx2", "avx512", "nonsense"] {
        let output = run_with(wish);
        assert!(output.status.success(), "{wish}: {output:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{wish}: {text}");
    }
}
