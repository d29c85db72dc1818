//! Windows of documents packed by best fit, the next one made while the rows of one are used.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

use crate::best_fit::{Rows, best_fit};
use crate::error::{DataError, Warning};
use crate::mixture::{Document, Mixture, PassedOver};
use crate::position::SourcePosition;
use crate::prefetch::Interrupt;

/// A window ends when it has so many tokens, or fills so many rows if that is more. Bounds the
/// memory: up to three windows of 4 bytes a token, and the document that ends each.
const MAX_WINDOW_TOKENS: usize = 1 << 22;
const MAX_WINDOW_ROWS: usize = 256;

/// Some documents and their rows.
pub(crate) struct Window {
    pub(crate) documents: Vec<Document>,
    pub(crate) rows: Rows,
    /// What was passed over between the documents.
    pub(crate) passed: PassedOver,
    pub(crate) warnings: Vec<Warning>,
    /// Where the sources stand after the window.
    pub(crate) places: Vec<SourcePosition>,
    /// Whether all sources have ended.
    pub(crate) is_last: bool,
}

/// The consumer's end. Dropping it stops the threads behind it and waits for them.
pub(crate) struct Windows {
    /// `None` only while dropping.
    receiver: Option<Receiver<Result<Window, DataError>>>,
    stop: Arc<AtomicBool>,
    interrupt: Interrupt,
    thread: Option<JoinHandle<()>>,
}

impl Windows {
    /// Starts the thread: windows of at most `max_documents` documents in rows of `row_len` tokens.
    /// `stop` is the one of the mixture's threads.
    pub(crate) fn start(
        mixture: Mixture,
        max_documents: usize,
        row_len: usize,
        stop: Arc<AtomicBool>,
        interrupt: Interrupt,
    ) -> Result<Self, DataError> {
        // Nothing is queued: the sender waits with one window in hand.
        let (sender, receiver) = sync_channel(0);
        let maker = Maker {
            mixture,
            max_documents,
            row_len,
            stop: Arc::clone(&stop),
        };
        let thread = Builder::new()
            .name("data packer".to_owned())
            .spawn(move || maker.run(&sender))
            .map_err(DataError::Spawn)?;
        Ok(Self {
            receiver: Some(receiver),
            stop,
            interrupt,
            thread: Some(thread),
        })
    }

    /// The next window. Must not be called after the last one.
    ///
    /// # Errors
    /// What reading or tokenizing met, before any document of the window it happens in.
    pub(crate) fn next(&mut self) -> Result<Window, DataError> {
        let receiver = self.receiver.as_ref().ok_or(DataError::ThreadStopped)?;
        self.interrupt.wait(receiver)?
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.receiver = None;
        if self.interrupt.is_set() {
            // See `Prefetch`.
            return;
        }
        if let Some(thread) = self.thread.take() {
            // A panic in the thread has been reported by `next` already.
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Maker {
    mixture: Mixture,
    max_documents: usize,
    row_len: usize,
    stop: Arc<AtomicBool>,
}

impl Maker {
    /// Returns after the last window or an error, or when nobody listens any more.
    fn run(mut self, sender: &SyncSender<Result<Window, DataError>>) {
        loop {
            let window = self.next();
            let goes_on = window.as_ref().is_ok_and(|window| !window.is_last);
            if sender.send(window).is_err() || !goes_on {
                return;
            }
        }
    }

    fn next(&mut self) -> Result<Window, DataError> {
        let max_tokens = MAX_WINDOW_TOKENS.max(MAX_WINDOW_ROWS * self.row_len);
        let mut documents = Vec::new();
        let (mut num_tokens, mut is_last) = (0, false);
        while documents.len() < self.max_documents && num_tokens < max_tokens {
            if self.stop.load(Ordering::Relaxed) {
                return Err(DataError::ThreadStopped);
            }
            let Some(document) = self.mixture.next()? else {
                is_last = true;
                break;
            };
            num_tokens += document.tokens.len();
            self.mixture.finish(&document);
            documents.push(document);
        }
        let lens = documents.iter().map(|document| document.tokens.len());
        let rows = best_fit(&lens.collect::<Vec<_>>(), self.row_len);
        Ok(Window {
            documents,
            rows,
            passed: self.mixture.take_passed_over(),
            warnings: self.mixture.take_warnings(),
            places: self.mixture.places().to_vec(),
            is_last,
        })
    }
}
