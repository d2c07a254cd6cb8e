//! `simulate`: tells stories of many seeds, and when one breaks an invariant, makes it short and prints it.

#![expect(clippy::print_stdout, reason = "a program that prints its result")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use sync_world::{Story, Violation, note_panics, shrink};
use tracing_subscriber::EnvFilter;

/// Tells stories in simulated worlds, one for each seed, and checks that nothing is broken that was promised.
///
/// Exit codes: 0 every story held; 1 an invariant is violated, or a seed does not replay; 2 wrong usage.
#[derive(Debug, Parser)]
#[command(name = "simulate", version)]
struct Flags {
    /// How many seeds
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Stop after so many minutes, however many seeds are left
    #[arg(long)]
    minutes: Option<f64>,
    /// Only this seed
    #[arg(long, conflicts_with_all = ["seeds", "start"])]
    seed: Option<u64>,
    /// Print each story and what happened in it
    #[arg(long)]
    verbose: bool,
    /// Tell each story twice, and compare what happened
    #[arg(long)]
    twice: bool,
    /// Stories at the same time; as many as there are processors unless it is said
    #[arg(long)]
    jobs: Option<usize>,
    /// Seconds for making a failing story short
    #[arg(long, default_value_t = 60)]
    shrink: u64,
}

/// A story that takes longer than this on the real clock is stuck.
const STUCK: Duration = Duration::from_secs(120);

/// What the tellers share.
struct Work {
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    stop: AtomicBool,
    told: AtomicU64,
    entries: AtomicU64,
    virtual_ms: AtomicU64,
    failure: Mutex<Option<Failure>>,
    /// What each teller is at, and since when.
    at: Vec<Mutex<Option<(u64, Instant)>>>,
}

enum Failure {
    Violated(Box<Story>, Violation),
    Differs(u64),
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off")))
        .with_writer(std::io::stderr)
        .init();
    note_panics();
    let (start, end) = match flags.seed {
        Some(seed) => (seed, seed + 1),
        None => (flags.start, flags.start.saturating_add(flags.seeds)),
    };
    let jobs = flags.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let began = Instant::now();
    let work = Work {
        next: AtomicU64::new(start),
        end,
        until: flags.minutes.map(|minutes| began + Duration::from_secs_f64(minutes * 60.0)),
        stop: AtomicBool::new(false),
        told: AtomicU64::new(0),
        entries: AtomicU64::new(0),
        virtual_ms: AtomicU64::new(0),
        failure: Mutex::new(None),
        at: (0..jobs).map(|_| Mutex::new(None)).collect(),
    };
    std::thread::scope(|scope| {
        let tellers: Vec<_> = (0..jobs)
            .map(|n| {
                scope.spawn({
                    let (work, flags) = (&work, &flags);
                    move || tell(work, flags, n)
                })
            })
            .collect();
        while !tellers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(50));
            work.watch();
        }
    });
    work.report(&flags, began.elapsed())
}

fn tell(work: &Work, flags: &Flags, teller: usize) {
    while let Some(seed) = work.next_seed() {
        *lock(&work.at[teller]) = Some((seed, Instant::now()));
        let story = Story::of(seed);
        if flags.verbose {
            println!("seed {seed}: {story}");
        }
        let told = story.tell();
        if flags.verbose {
            println!("{}", told.trace);
        }
        work.told.fetch_add(1, Ordering::Relaxed);
        work.entries.fetch_add(told.entries, Ordering::Relaxed);
        work.virtual_ms.fetch_add(u64::try_from(told.elapsed.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        let failure = match told.violation {
            Some(violation) => Some(Failure::Violated(story.into(), violation)),
            None if flags.twice && Story::of(seed).tell().trace_hash != told.trace_hash => Some(Failure::Differs(seed)),
            None => None,
        };
        if let Some(failure) = failure {
            work.stop.store(true, Ordering::Relaxed);
            lock(&work.failure).get_or_insert(failure);
        }
    }
    *lock(&work.at[teller]) = None;
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Work {
    fn next_seed(&self) -> Option<u64> {
        let late = self.until.is_some_and(|until| Instant::now() >= until);
        if late || self.stop.load(Ordering::Relaxed) {
            return None;
        }
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < self.end)
    }

    /// Ends the process when a story does not end.
    fn watch(&self) {
        for at in &self.at {
            if let Some((seed, since)) = *lock(at)
                && since.elapsed() > STUCK
            {
                println!("violated: every_story_ends seed {seed}");
                println!("  expected: an end within {} s\n  seen:     none", STUCK.as_secs());
                std::process::exit(1);
            }
        }
    }

    fn report(&self, flags: &Flags, took: Duration) -> ExitCode {
        let (told, entries) = (self.told.load(Ordering::Relaxed), self.entries.load(Ordering::Relaxed));
        let virtual_hours = Duration::from_millis(self.virtual_ms.load(Ordering::Relaxed)).as_secs_f64() / 3600.0;
        println!(
            "{told} stories in {:.1} s ({:.0} ms each), {virtual_hours:.1} virtual hours, {entries} log entries",
            took.as_secs_f64(),
            took.as_secs_f64() * 1000.0 / (told.max(1) as f64),
        );
        match lock(&self.failure).take() {
            None => {
                println!("no invariant violated");
                ExitCode::SUCCESS
            }
            Some(Failure::Differs(seed)) => {
                println!("violated: a_seed_replays seed {seed}");
                ExitCode::FAILURE
            }
            Some(Failure::Violated(story, violation)) => {
                println!("violated: {} seed {}", violation.invariant, story.seed);
                println!("{violation}");
                let shrunk = shrink(&story, violation, Duration::from_secs(flags.shrink));
                println!(
                    "shortened in {} tellings to {} of {} steps:",
                    shrunk.told,
                    shrunk.story.steps.len(),
                    story.steps.len()
                );
                println!("{}\n{}", shrunk.story, shrunk.violation);
                if flags.verbose {
                    println!("{}", shrunk.story.tell().trace);
                }
                ExitCode::FAILURE
            }
        }
    }
}
