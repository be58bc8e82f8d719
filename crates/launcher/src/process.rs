//! Processes by number and start time, so that a number that was given to
//! another process is never taken for the one that was meant.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

/// A process of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pid: i32,
    /// In clock ticks since boot; 0 where that cannot be told.
    started: u64,
}

impl Process {
    /// The living process `pid`. One that has ended and only waits for its
    /// parent counts as dead.
    pub(crate) fn find(pid: i32) -> Option<Self> {
        if Path::new("/proc/self/stat").exists() {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            parse_stat(&stat).map(|started| Self { pid, started })
        } else {
            rustix::process::test_kill_process(Pid::from_raw(pid)?).ok().map(|()| Self { pid, started: 0 })
        }
    }

    /// Every living process with an argument at or below `dir`. None where
    /// there is no `/proc`.
    pub(crate) fn with_argument_below(dir: &Path) -> Vec<Self> {
        Self::matching(|words| words.iter().any(|word| is_below(word, dir.as_os_str().as_bytes())))
    }

    /// Every living process with a command line like that.
    fn matching(like: impl Fn(&[&[u8]]) -> bool) -> Vec<Self> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            like(&line.split(|byte| *byte == 0).collect::<Vec<_>>())
        })
        .filter_map(Self::find)
        .collect()
    }

    /// Every living process that is `program`, or an interpreter of it, at work
    /// on the machine `name`: `--name NAME`, or in older versions the word after
    /// `create` or `delete`. What a guest's command has behind `--` does not
    /// count. None where there is no `/proc`.
    pub(crate) fn of_program(program: &Path, name: &str) -> Vec<Self> {
        Self::matching(|words| {
            words.iter().take(2).any(|first| *first == program.as_os_str().as_bytes())
                && is_about(words, name.as_bytes())
        })
    }

    /// Of these, the ones whose command is none of `commands`.
    pub(crate) fn of_program_but(program: &Path, word: &str, commands: &[&str]) -> Vec<Self> {
        Self::matching(|words| {
            // The interpreter, the program, its command.
            let beginning = words.get(..words.len().min(3)).unwrap_or_default();
            beginning.iter().take(2).any(|first| *first == program.as_os_str().as_bytes())
                && words.contains(&word.as_bytes())
                && !commands.iter().any(|command| beginning.contains(&command.as_bytes()))
        })
    }

    pub(crate) fn pid(self) -> i32 {
        self.pid
    }

    pub(crate) fn is_alive(self) -> bool {
        Self::find(self.pid) == Some(self)
    }

    /// Kills it, without asking.
    pub(crate) fn kill(self) {
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            // It may be gone by now, which is what is wanted.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Waits until all are dead; the ones that are not.
pub(crate) fn wait_gone(mut processes: Vec<Process>, within: Duration) -> Vec<Process> {
    let deadline = Instant::now() + within;
    loop {
        processes.retain(|process| process.is_alive());
        if processes.is_empty() || Instant::now() >= deadline {
            return processes;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_below(argument: &[u8], dir: &[u8]) -> bool {
    argument.strip_prefix(dir).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

fn is_about(words: &[&[u8]], name: &[u8]) -> bool {
    let own = words.split(|word| *word == b"--").next().unwrap_or_default();
    own.windows(2).any(|pair| matches!(pair, [b"--name" | b"create" | b"delete", word] if *word == name))
}

/// The start time in `/proc/<pid>/stat` (proc(5): field 22), `None` for a dead
/// process. The name, field 2, may contain anything but ends at the last `)`.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_lives_and_another_start_time_is_another_process() {
        let me = Process::find(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let other = Process { started: me.started + 1, ..me };
        assert!(!other.is_alive());
        // Would end this test if it did not look.
        other.kill();
        assert_eq!(wait_gone(vec![other], Duration::ZERO), []);
        assert_eq!(wait_gone(vec![me], Duration::from_millis(20)), [me]);
    }

    #[test]
    fn the_start_time_is_found_behind_any_name_and_the_dead_have_none() {
        let stat = |state: &str| format!("7 (a) b) {state} {} 4242 8192 1", ["0"; 18].join(" "));
        assert_eq!(parse_stat(&stat("S")), Some(4242));
        assert_eq!(parse_stat(&stat("Z")), None);
        assert_eq!(parse_stat("garbage"), None);
    }

    #[test]
    fn only_smolvms_own_words_say_which_machine_it_is_about() {
        let about = |line: &str| is_about(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>(), b"test");
        assert!(
            about("smolvm machine exec --name test -- cargo") && about("smolvm machine create test --from x")
        );
        assert!(!about("smolvm machine exec --name other -- cargo test"));
        assert!(!about("smolvm machine exec --name other -- x --name test"));
    }

    #[test]
    fn a_folder_whose_name_only_begins_alike_is_not_meant() {
        assert!(is_below(b"/vms/ab/boot.json", b"/vms/ab"));
        assert!(is_below(b"/vms/ab", b"/vms/ab"));
        assert!(!is_below(b"/vms/abc/boot.json", b"/vms/ab"));
        assert!(!is_below(b"--x=/vms/ab", b"/vms/ab"));
    }
}
