//! Faults of the machine itself: disks that are full, slow, failing or cut from power, processes that die in the middle of a
//! system call, networks that end. Not every machine lets a test do that. A scenario says what it needs; where that is not to be
//! had it is listed as ignored, with the reason on standard error, and never counts as passed.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use crate::harness::Outcome;

/// What a scenario needs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// To mount file systems that nobody else sees.
    Mounts,
    /// An ext4 in a file, and a way to cut it from its disk.
    LoopDisks,
    /// Networks of its own.
    Networks,
    /// To change what system calls of another process do.
    Tracing,
    /// To lie to a process about the time of day.
    WrongClocks,
}

impl Need {
    /// Why it is not to be had here; `None` if it is.
    fn lacking(self) -> Option<&'static str> {
        let (probe, why) = match self {
            Self::Mounts => ("unshare --mount mount -t tmpfs none /mnt", "mounting needs root (CAP_SYS_ADMIN)"),
            Self::LoopDisks => (
                "losetup --find && command -v mkfs.ext4 perl && unshare --mount true",
                "an ext4 in a file needs root, a free loop device, mkfs.ext4 and perl",
            ),
            Self::Networks => ("unshare --net ip link set lo up", "networks need root (CAP_SYS_ADMIN) and `ip`"),
            Self::Tracing => ("strace -o /dev/null true", "strace is not installed, or may not trace"),
            Self::WrongClocks => ("faketime tomorrow true", "the program `faketime` is not installed"),
        };
        let probed = Command::new("sh").args(["-c", probe]).stdout(Stdio::null()).stderr(Stdio::null()).status();
        (!probed.is_ok_and(|status| status.success())).then_some(why)
    }
}

/// A test by itself.
type Run = fn() -> Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// A test that needs something of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    pub needs: &'static [Need],
    pub run: Run,
}

/// A scenario of the async function `$run`.
#[macro_export]
macro_rules! scenario {
    ($run:ident $(, $need:ident)*) => {
        $crate::machine::Scenario {
            name: stringify!($run),
            needs: &[$($crate::machine::Need::$need),*],
            run: || Box::pin($run()),
        }
    };
}

/// The main function of a test program: behaves as any other test program does.
#[must_use]
pub fn main(scenarios: &[Scenario]) -> ExitCode {
    let arguments = Arguments::from_args();
    let trials = scenarios.iter().map(|scenario| trial(*scenario)).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn trial(scenario: Scenario) -> Trial {
    let lacking = scenario.needs.iter().find_map(|need| need.lacking());
    if let Some(why) = lacking {
        // Nobody should have to guess why something was not shown.
        let _ = writeln!(std::io::stderr(), "NOT SHOWN HERE: {}: {why}", scenario.name);
    }
    let run = move || {
        // A thread of its own, whose namespaces are nobody else's; what it starts inherits them.
        let ran = std::thread::spawn(move || in_own_namespaces(scenario)).join();
        ran.map_err(|_| Failed::from("it panicked"))?.map_err(|error| Failed::from(error.to_string()))
    };
    Trial::test(scenario.name, run).with_ignored_flag(lacking.is_some())
}

fn in_own_namespaces(scenario: Scenario) -> Outcome {
    let mut own = CloneFlags::empty();
    for need in scenario.needs {
        own |= match need {
            Need::Mounts | Need::LoopDisks => CloneFlags::CLONE_NEWNS,
            Need::Networks => CloneFlags::CLONE_NEWNET,
            Need::Tracing | Need::WrongClocks => CloneFlags::empty(),
        };
    }
    unshare(own)?;
    if own.contains(CloneFlags::CLONE_NEWNS) {
        run("mount", &["--make-rprivate", "/"])?;
    }
    if own.contains(CloneFlags::CLONE_NEWNET) {
        run("ip", &["link", "set", "lo", "up"])?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on((scenario.run)())
}

/// Runs a program to its end.
///
/// # Errors
/// When it does not succeed, with what it said.
pub fn run(program: &str, args: &[&str]) -> Outcome<String> {
    let output = Command::new(program).args(args).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(format!("{program} {args:?}: {}: {said}", output.status).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An error and everything below it, as one text.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        said = format!("{said}: {error}");
        below = error.source();
    }
    said
}

fn text(path: &Path) -> Outcome<&str> {
    Ok(path.to_str().ok_or("a path that is text")?)
}

// ---- disks ------------------------------------------------------------------------------------------------------------

/// A small disk, which can be full. Gone with the handle.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// A disk of so many bytes.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn of(bytes: u64) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={bytes}"), "none", text(dir.path())?])?;
        Ok(Self { dir })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    fn filler(&self) -> PathBuf {
        self.dir.path().join("filler")
    }

    /// Takes all the room that there is.
    ///
    /// # Errors
    /// When something else is wrong with the disk.
    pub fn fill(&self) -> Outcome {
        let mut filler = File::options().create(true).append(true).open(self.filler())?;
        let page = [0; 4096];
        loop {
            match filler.write_all(&page) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Gives it back.
    ///
    /// # Errors
    /// When it was not taken.
    pub fn make_room(&self) -> Outcome {
        Ok(fs::remove_file(self.filler())?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Its directory goes next, and can go only when nothing is mounted there.
        let _ = text(self.dir.path()).and_then(|path| run("umount", &["--lazy", path]));
    }
}

/// An ext4 in a file, on a disk that can lose power.
#[derive(Debug)]
pub struct LoopDisk {
    dir: TempDir,
}

impl LoopDisk {
    /// A new file system of so many megabytes, mounted.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn of_megabytes(megabytes: u64) -> Outcome<Self> {
        let dir = tempfile::tempdir()?;
        let disk = Self { dir };
        File::create(disk.image())?.set_len(megabytes << 20)?;
        run("mkfs.ext4", &["-q", text(&disk.image())?])?;
        fs::create_dir(disk.path())?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn mount(&self) -> Outcome {
        run("mount", &["-o", "loop", text(&self.image())?, text(&self.path())?])?;
        Ok(())
    }

    /// From now on the file system takes no writes: it found an error, as kernels do.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn turns_read_only(&self) -> Outcome {
        run("mount", &["-o", "remount,abort", text(&self.path())?])?;
        Ok(())
    }

    /// Cuts the power: whatever was not flushed is lost, and nothing is written any more.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn lose_power(&self) -> Outcome {
        // EXT4_IOC_SHUTDOWN, without flushing its journal first: <https://man7.org/linux/man-pages/man5/ext4.5.html>
        const CUT: &str =
            "my $how = pack('L', 2); open(D, '<', $ARGV[0]) or die $!; ioctl(D, 0x8004587D, $how) or die $!;";
        run("perl", &["-e", CUT, text(&self.path())?])?;
        Ok(())
    }

    /// The disk as it is found after the machine starts again. Nobody may have a file open on it.
    ///
    /// # Errors
    /// When it cannot be mounted any more.
    pub fn power_again(&self) -> Outcome {
        run("umount", &[text(&self.path())?])?;
        self.mount()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = text(&self.path()).and_then(|path| run("umount", &["--lazy", path]));
    }
}

// ---- system calls -----------------------------------------------------------------------------------------------------

/// What happens to system calls of a process that is there already. Over when dropped.
#[derive(Debug)]
pub struct Tampering {
    tracer: Child,
}

impl Tampering {
    /// From when this returns, `fault` is done to `calls` (comma-separated names) of the process, in strace's words:
    /// `error=EIO`, `delay_enter=300000` (microseconds), `signal=KILL:when=2`.
    ///
    /// # Errors
    /// When the process cannot be traced.
    pub fn with(pid: u32, calls: &str, fault: &str) -> Outcome<Self> {
        let pid = pid.to_string();
        let mut tracer = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "-p", &pid, "-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:{fault}")])
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = tracer.stderr.take().ok_or("stderr is piped")?;
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(stderr));
        let attached = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("attached")));
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.count());
        attached.ok_or("strace did not attach")??;
        Ok(Self { tracer })
    }

    /// Waits until the process that is traced has ended.
    ///
    /// # Errors
    /// When the tracer is lost.
    pub fn until_it_ends(mut self) -> Outcome<ExitStatus> {
        Ok(self.tracer.wait()?)
    }
}

impl Drop for Tampering {
    fn drop(&mut self) {
        // A tracer that goes lets go of what it traces.
        let _ = self.tracer.kill();
        let _ = self.tracer.wait();
    }
}

// ---- the time of day --------------------------------------------------------------------------------------------------

/// A program and its arguments which become another program whose time of day begins at `date`; time itself passes as it does.
///
/// # Errors
/// When the library for that is not there.
pub fn wrong_clock(date: &str) -> Outcome<Vec<String>> {
    let library = run("faketime", &["-m", date, "printenv", "LD_PRELOAD"])?;
    let as_it_passes = ["DONT_FAKE_MONOTONIC=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"].map(str::to_owned);
    let clock = ["env".to_owned(), format!("LD_PRELOAD={}", library.trim()), format!("FAKETIME=@{date}")];
    Ok(clock.into_iter().chain(as_it_passes).collect())
}

// ---- networks ---------------------------------------------------------------------------------------------------------

/// A network of two: this side, and a side for the node. What goes wrong on it is the kernel's to find out.
#[derive(Debug)]
pub struct Cable {
    number: u8,
    /// Whoever is on the node's side holds its network: this process does, and nothing else.
    node_side: Child,
}

impl Cable {
    /// A cable whose addresses are made of `number`. The test needs [`Need::Networks`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(number: u8) -> Outcome<Self> {
        // It says when the network is its own.
        let holder = ["--net", "sh", "-c", "ip link set lo up && echo there && exec sleep 600"];
        let mut node_side = Command::new("unshare").args(holder).stdout(Stdio::piped()).spawn()?;
        let stdout = node_side.stdout.take().ok_or("stdout is piped")?;
        let cable = Self { number, node_side };
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line)?;
        let [ours, theirs] = cable.ends();
        let pid = cable.node_side.id().to_string();
        run("ip", &["link", "add", &ours, "type", "veth", "peer", "name", &theirs, "netns", &pid])?;
        run("ip", &["address", "add", &format!("{}/30", cable.own_address()), "dev", &ours])?;
        run("ip", &["link", "set", &ours, "up"])?;
        cable.at_the_node_run(&["ip", "address", "add", &format!("{}/30", cable.node_address()), "dev", &theirs])?;
        cable.at_the_node_run(&["ip", "link", "set", &theirs, "up"])?;
        Ok(cable)
    }

    fn ends(&self) -> [String; 2] {
        [format!("hw{}a", self.number), format!("hw{}b", self.number)]
    }

    /// Of the addresses that are set aside for trying networks (RFC 2544).
    fn own_address(&self) -> String {
        format!("198.18.{}.1", self.number)
    }

    /// What a node on the other side listens on.
    #[must_use]
    pub fn node_address(&self) -> String {
        format!("198.18.{}.2", self.number)
    }

    /// A program and its arguments which become another program on the node's side.
    #[must_use]
    pub fn at_the_node(&self) -> Vec<String> {
        let pid = self.node_side.id().to_string();
        ["nsenter", "--net", "--target", &pid].map(str::to_owned).to_vec()
    }

    fn at_the_node_run(&self, command: &[&str]) -> Outcome {
        let mut args = vec!["--net", "--target"];
        let pid = self.node_side.id().to_string();
        args.push(&pid);
        args.extend(command);
        run("nsenter", &args)?;
        Ok(())
    }

    /// Nothing arrives at either side any more.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn lose_all(&self) -> Outcome {
        let [ours, _] = self.ends();
        let node = self.node_address();
        run("ip", &["neighbour", "replace", &node, "lladdr", NOBODY, "dev", &ours, "nud", "permanent"])?;
        self.lose_from_node()
    }

    /// Nothing that the node sends arrives any more.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn lose_from_node(&self) -> Outcome {
        let ([_, theirs], own) = (self.ends(), self.own_address());
        self.at_the_node_run(&[
            "ip",
            "neighbour",
            "replace",
            &own,
            "lladdr",
            NOBODY,
            "dev",
            &theirs,
            "nud",
            "permanent",
        ])
    }

    /// Everything arrives again.
    ///
    /// # Errors
    /// When that is not possible.
    pub fn mend(&self) -> Outcome {
        let ([ours, theirs], own) = (self.ends(), self.own_address());
        run("ip", &["neighbour", "flush", "dev", &ours, "nud", "permanent"])?;
        self.at_the_node_run(&["ip", "neighbour", "del", &own, "dev", &theirs])
    }
}

/// The address of a network card that is not there.
const NOBODY: &str = "02:00:00:00:00:99";

impl Drop for Cable {
    fn drop(&mut self) {
        // The cable goes with the network that holds its other end.
        let _ = self.node_side.kill();
        let _ = self.node_side.wait();
    }
}
