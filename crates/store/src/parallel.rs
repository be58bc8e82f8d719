//! One function on many things, on all cores.

use std::num::NonZero;
use std::thread::available_parallelism;

/// Fewer than this many things are not worth a thread.
const LEAST: usize = 64;

/// The results, in the order of the things.
pub(crate) fn map<T: Sync, R: Send>(things: &[T], run: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = available_parallelism().map_or(1, NonZero::get).min(things.len() / LEAST);
    if threads < 2 {
        return things.iter().map(run).collect();
    }
    let run = &run;
    std::thread::scope(|scope| {
        let chunks = things.chunks(things.len().div_ceil(threads));
        let workers: Vec<_> =
            chunks.map(|chunk| scope.spawn(move || chunk.iter().map(run).collect::<Vec<R>>())).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<R>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_have_the_order_of_the_things() {
        for count in [0, 1, 63, 1000] {
            let things: Vec<usize> = (0..count).collect();
            assert_eq!(super::map(&things, |n| n * 2), things.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
