//! The memory that files pass through on their way out.
//!
//! Large pieces are faster, and a client that takes nothing keeps the ones that
//! were read for it. So the first of each answer are small, until the client has
//! taken more than the kernel buffers for it; large ones come out of a pool of
//! fixed size, and when that is empty, all are small, and those who keep large
//! ones and stand still are not waited for as long as else.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of a small piece.
const SMALL: usize = 32 << 10;
/// Bytes of a large one.
const LARGE: usize = 256 << 10;
/// So many large ones there are: 16 MiB.
const COUNT: usize = 64;
/// Fewer are few: what some transfers need.
const FEW: usize = 16;
/// So many bytes of an answer go out in small ones.
const SLOW_START: u64 = 4 << 20;

/// The large pieces.
#[derive(Debug, Default)]
pub(crate) struct Pieces(Mutex<Pool>);

#[derive(Debug, Default)]
struct Pool {
    free: Vec<Vec<u8>>,
    /// How many there are, lent ones included.
    made: usize,
    refused: u64,
}

/// Some memory, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Piece {
    bytes: Vec<u8>,
    length: usize,
    /// Whose it is, if it is a large one.
    pool: Option<Arc<Pieces>>,
}

impl Pieces {
    /// Memory for the next of `left` bytes, when `sent` went out before them.
    pub(crate) fn take(self: &Arc<Self>, sent: u64, left: u64) -> Piece {
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        if sent >= SLOW_START
            && left > SMALL
            && let Some(bytes) = self.lend()
        {
            return Piece { bytes, length: LARGE.min(left), pool: Some(Arc::clone(self)) };
        }
        let length = SMALL.min(left);
        Piece { bytes: vec![0; length], length, pool: None }
    }

    /// How often there was no large one for somebody.
    pub(crate) fn refused(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).refused
    }

    /// Whether that happened since it was `refused`, and few have come back.
    pub(crate) fn are_short(&self, refused: u64) -> bool {
        let pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pool.refused > refused && pool.free.len() < FEW
    }

    fn lend(&self) -> Option<Vec<u8>> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bytes) = pool.free.pop() {
            return Some(bytes);
        }
        if pool.made == COUNT {
            pool.refused += 1;
            return None;
        }
        pool.made += 1;
        Some(vec![0; LARGE])
    }
}

impl Piece {
    /// Whether it is one of the pool's.
    pub(crate) fn is_large(&self) -> bool {
        self.pool.is_some()
    }

    /// The bytes of it that count.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl From<Piece> for Bytes {
    fn from(piece: Piece) -> Self {
        Self::from_owner(piece)
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let mut pool = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            pool.free.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pieces_are_lent_only_after_a_start_and_only_so_many() {
        let pieces = Arc::<Pieces>::default();
        assert_eq!(pieces.take(0, u64::MAX).as_ref().len(), SMALL);
        assert_eq!(pieces.take(0, 5).as_ref().len(), 5);
        let lent: Vec<_> = (0..COUNT).map(|_| pieces.take(SLOW_START, u64::MAX)).collect();
        assert!(lent.iter().all(|piece| piece.as_ref().len() == LARGE));
        assert_eq!(pieces.take(SLOW_START, u64::MAX).as_ref().len(), SMALL, "the pool is empty");
        drop(lent);
        assert_eq!(pieces.take(SLOW_START, LARGE as u64 - 1).as_ref().len(), LARGE - 1);
        assert_eq!(pieces.0.lock().unwrap().made, COUNT);
    }
}
