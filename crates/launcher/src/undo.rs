//! The stack of things to undo.

use std::panic::{AssertUnwindSafe, catch_unwind};

use smolcellar_store::{Event, Reporter};

/// Steps that take back what bring-up made, run in reverse order, each once.
///
/// They run when [`UndoStack::unwind`] is called and otherwise when the stack
/// is dropped, so also while a panic unwinds. A step that fails, or panics,
/// keeps none of the others from running.
pub(crate) struct UndoStack<'a> {
    steps: Vec<Step<'a>>,
    reporter: &'a dyn Reporter,
}

struct Step<'a> {
    name: String,
    undo: Box<dyn FnOnce() -> Result<(), String> + 'a>,
}

impl<'a> UndoStack<'a> {
    pub(crate) fn new(reporter: &'a dyn Reporter) -> Self {
        Self { steps: Vec::new(), reporter }
    }

    /// Registers a step. Call it before making what it takes back: making may
    /// fail half-way. So `undo` must accept that there is nothing, and it must
    /// be bounded in time.
    pub(crate) fn push(&mut self, name: impl Into<String>, undo: impl FnOnce() -> Result<(), String> + 'a) {
        self.steps.push(Step { name: name.into(), undo: Box::new(undo) });
    }

    /// Lets everything stay.
    pub(crate) fn forget(&mut self) {
        self.steps.clear();
    }

    /// Runs every step; how many failed. Each failure is also a warning.
    pub(crate) fn unwind(&mut self) -> usize {
        let mut failed = 0;
        while let Some(Step { name, undo }) = self.steps.pop() {
            let result = catch_unwind(AssertUnwindSafe(undo)).unwrap_or_else(|_| Err("it panicked".into()));
            if let Err(problem) = result {
                failed += 1;
                self.reporter.report(Event::Warn { text: &format!("could not {name}: {problem}") });
            }
        }
        failed
    }
}

impl Drop for UndoStack<'_> {
    fn drop(&mut self) {
        self.unwind();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smolcellar_store::Quiet;
    use std::cell::RefCell;

    #[test]
    fn steps_run_in_reverse_and_only_once() {
        let ran = RefCell::new(Vec::new());
        let mut undo = UndoStack::new(&Quiet);
        for step in 1..=3 {
            let ran = &ran;
            undo.push(format!("undo {step}"), move || {
                ran.borrow_mut().push(step);
                Ok(())
            });
        }
        assert_eq!(undo.unwind(), 0);
        assert_eq!(undo.unwind(), 0);
        drop(undo);
        assert_eq!(*ran.borrow(), [3, 2, 1]);
    }

    #[test]
    fn a_step_that_fails_or_panics_keeps_no_other_from_running() {
        struct Heard(std::sync::Mutex<Vec<String>>);
        impl Reporter for Heard {
            fn report(&self, event: Event<'_>) {
                if let Event::Warn { text } = event {
                    self.0.lock().unwrap().push(text.to_owned());
                }
            }
        }
        let heard = Heard(std::sync::Mutex::new(Vec::new()));
        let ran = RefCell::new(0);
        let mut undo = UndoStack::new(&heard);
        undo.push("a", || {
            *ran.borrow_mut() += 1;
            Ok(())
        });
        undo.push("b", || panic!("on purpose"));
        undo.push("c", || Err("no".into()));
        assert_eq!(undo.unwind(), 2);
        drop(undo);
        assert_eq!(*ran.borrow(), 1);
        assert_eq!(*heard.0.lock().unwrap(), ["could not c: no", "could not b: it panicked"]);
    }

    #[test]
    fn a_panic_unwinds_the_stack_too() {
        let ran = RefCell::new(false);
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut undo = UndoStack::new(&Quiet);
            undo.push("a", || {
                *ran.borrow_mut() = true;
                Ok(())
            });
            panic!("on purpose");
        }));
        assert!(result.is_err() && *ran.borrow());
    }
}
