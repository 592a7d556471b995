//! A decoded token makes no system call, but for what threads need to wait for each other.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use aios_engine::{Executor, ExecutorOptions, Model, Want};
use aios_residency::Phase;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

const CHILD: &str = "AIOS_TEST_SYSTEM_CALLS";

#[test]
fn a_decoded_token_makes_no_system_call() {
    // A filter holds for a whole process and cannot be taken back, so this test runs itself again.
    if let Some(what) = std::env::var_os(CHILD) {
        return filtered(what == "reads");
    }
    let itself = std::env::current_exe().expect("this test");
    for (what, signal) in [("decodes", None), ("reads", Some(libc::SIGSYS))] {
        let mut child = Command::new(&itself);
        child.args(["--exact", "a_decoded_token_makes_no_system_call"]).env(CHILD, what);
        let output = child.output().expect("it runs");
        assert_eq!(output.status.signal(), signal, "{what}: {output:?}");
        assert_eq!(output.status.success(), signal.is_none(), "{what}: {output:?}");
    }
}

/// Decodes where any other call ends the process.
fn filtered(reads: bool) {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata/models");
    let mut executors = ["micro-llama-q4km.gguf", "micro-gemma3-q4km.gguf"].map(|name| {
        let model = Model::load(&models.join(name)).expect("a micro model");
        let options = ExecutorOptions { threads: 2, threads_batch: 2, ..ExecutorOptions::new(64) };
        let mut executor = Executor::new(model, options).expect("an executor");
        // Buffers of kernels and threads grow to their size in the first passes.
        decode(&mut executor, 0..8);
        executor
    });
    // Threads sleep and yield where they wait; some virtual machines tell the time by a call. The
    // others end the process.
    let fine = [libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_clock_gettime];
    let end = [libc::SYS_sigaltstack, libc::SYS_munmap, libc::SYS_exit_group];
    let rules: BTreeMap<_, _> = fine.into_iter().chain(end).map(|call| (call, vec![])).collect();
    let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, kill, allow, TargetArch::x86_64).expect("a filter");
    let program: BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter_all_threads(&program).expect("a kernel with filters");
    for executor in &mut executors {
        decode(executor, 8..40);
    }
    if reads {
        // What is not decoding is noticed.
        drop(std::fs::read("/dev/null"));
    }
    std::process::exit(0);
}

fn decode(executor: &mut Executor, ids: std::ops::Range<u32>) {
    for id in ids {
        let sink = &mut |_, _: &[f32]| Ok(());
        executor.forward(&[id], Phase::Decode, Want::Last, sink).expect("a pass");
    }
}
