//! Reads and tokenizes ahead: one reader thread a source, a few tokenizer threads for all, results in
//! the order of the documents of each source.
//!
//! A reader collects items into jobs. For each job it first queues the receiving end of a
//! one-shot channel in the ordered, bounded queue of its source, then hands the job to whichever
//! worker is free. So order does not depend on the workers, memory is bounded by the queues, and
//! nobody waits for anybody behind him: a worker never blocks on its one-shot channel, hence the
//! job at the head of the queue always gets done, however large another one is.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::documents::{Body, Event, Item};
use crate::encoder::WordCache;
use crate::error::{DataError, TokenizerError};
use crate::shuffle::OrderedDocuments;
use crate::tokenizer::{Tokenizer, pieces};

/// How long a wait for data lasts before it looks whether it is to be given up.
const PATIENCE: Duration = Duration::from_millis(50);
/// A job is handed on when it has this much text. A longer document is a job of its own.
const JOB_BYTES: usize = 1 << 16;
/// And at the latest when it has this many items, so that a long run of empty documents does not
/// pile up.
const JOB_ITEMS: usize = 256;

/// An event of the document stream with token ids in place of the text.
pub(crate) type TokenItem = Item<Vec<u32>>;

type JobResult = Result<Vec<TokenItem>, DataError>;

struct Job {
    items: Vec<Item<Body>>,
    result: SyncSender<JobResult>,
}

/// What comes from one source.
struct Queue {
    jobs: Receiver<Receiver<JobResult>>,
    ready: std::vec::IntoIter<TokenItem>,
}

/// A flag from outside, set later, on which waiting for data is given up.
#[derive(Clone, Default)]
pub(crate) struct Interrupt(Arc<OnceLock<Arc<AtomicBool>>>);

impl Interrupt {
    /// Gives up once `flag` is set. Only the first flag counts.
    pub(crate) fn listen_to(&self, flag: Arc<AtomicBool>) {
        self.0.get_or_init(|| flag);
    }

    pub(crate) fn is_set(&self) -> bool {
        let flag = self.0.get();
        flag.is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Waits for what is sent.
    ///
    /// # Errors
    /// [`DataError::Interrupted`], or that the sender is gone.
    pub(crate) fn wait<T>(&self, receiver: &Receiver<T>) -> Result<T, DataError> {
        loop {
            match receiver.recv_timeout(PATIENCE) {
                Ok(received) => return Ok(received),
                Err(RecvTimeoutError::Disconnected) => return Err(DataError::ThreadStopped),
                Err(RecvTimeoutError::Timeout) if self.is_set() => {
                    return Err(DataError::Interrupted);
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// The consumer's end. Dropping it stops all threads and waits for them.
pub(crate) struct Prefetch {
    /// One a source; empty only while dropping.
    queues: Vec<Queue>,
    stop: Arc<AtomicBool>,
    interrupt: Interrupt,
    threads: Vec<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts the threads for the given sources. Raising `stop` makes them give up, between two
    /// pieces of a text at the latest.
    pub(crate) fn start(
        sources: Vec<OrderedDocuments>,
        tokenizer: &Arc<Tokenizer>,
        num_workers: usize,
        stop: Arc<AtomicBool>,
        interrupt: Interrupt,
    ) -> Result<Self, DataError> {
        let mut prefetch = Self {
            queues: Vec::with_capacity(sources.len()),
            stop: Arc::clone(&stop),
            interrupt,
            threads: Vec::with_capacity(num_workers + sources.len()),
        };
        // Declared after the threads, so that they find it closed if one of them does not start.
        let (jobs_sender, jobs) = channel();
        let jobs = Arc::new(Mutex::new(jobs));
        for _ in 0..num_workers {
            let (jobs, tokenizer) = (Arc::clone(&jobs), Arc::clone(tokenizer));
            let stop = Arc::clone(&stop);
            prefetch.spawn("tokenizer", move || work(&jobs, &tokenizer, &stop))?;
        }
        for documents in sources {
            let (queue_sender, jobs) = sync_channel(2 * num_workers + 2);
            let ready = Vec::new().into_iter();
            prefetch.queues.push(Queue { jobs, ready });
            let (jobs_sender, stop) = (jobs_sender.clone(), Arc::clone(&stop));
            prefetch.spawn("data reader", move || {
                read_ahead(documents, &queue_sender, &jobs_sender, &stop);
            })?;
        }
        Ok(prefetch)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), DataError> {
        let thread = Builder::new().name(name.to_owned()).spawn(body);
        self.threads.push(thread.map_err(DataError::Spawn)?);
        Ok(())
    }

    /// The next item of a source, in its order.
    ///
    /// # Errors
    /// What the reader or a worker met, or that a thread is gone. Must not be called after the last
    /// item.
    pub(crate) fn next(&mut self, source: usize) -> Result<TokenItem, DataError> {
        let queue = &mut self.queues[source];
        loop {
            if let Some(item) = queue.ready.next() {
                return Ok(item);
            }
            let result = self.interrupt.wait(&queue.jobs)?;
            let items = self.interrupt.wait(&result)??;
            queue.ready = items.into_iter();
        }
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // The readers' next sends fail, they drop the job channel, and the workers find it closed.
        self.queues.clear();
        if self.interrupt.is_set() {
            // A reader may wait for a disk or a pipe that never answers; it ends with the process.
            return;
        }
        for thread in self.threads.drain(..) {
            // A panic in a thread has been reported by `next` already.
            let _ = thread.join();
        }
    }
}

/// Body of a reader thread. Returns at the end of the data, after an error, or when nobody
/// listens any more.
fn read_ahead(
    mut documents: OrderedDocuments,
    queue: &SyncSender<Receiver<JobResult>>,
    jobs: &Sender<Job>,
    stop: &AtomicBool,
) {
    let submit = |items: Vec<Item<Body>>| {
        let (result, receiver) = sync_channel(1);
        queue.send(receiver).is_ok() && jobs.send(Job { items, result }).is_ok()
    };
    let mut items = Vec::new();
    let mut num_bytes = 0;
    while !stop.load(Ordering::Relaxed) {
        match documents.next() {
            Ok(Some(item)) => {
                num_bytes += match &item.event {
                    Event::Document(body) => body.size(),
                    _ => 0,
                };
                items.push(item);
                if num_bytes >= JOB_BYTES || items.len() >= JOB_ITEMS {
                    num_bytes = 0;
                    if !submit(std::mem::take(&mut items)) {
                        return;
                    }
                }
            }
            Ok(None) => {
                submit(items);
                return;
            }
            Err(error) => {
                if submit(items) {
                    let (result, receiver) = sync_channel(1);
                    // Both sends fail only if the consumer is gone.
                    let _ = result.send(Err(error)).is_ok() && queue.send(receiver).is_ok();
                }
                return;
            }
        }
    }
}

/// Body of a tokenizer thread.
fn work(jobs: &Mutex<Receiver<Job>>, tokenizer: &Tokenizer, stop: &AtomicBool) {
    let mut cache = WordCache::default();
    loop {
        let job = {
            let Ok(jobs) = jobs.lock() else { return };
            jobs.recv()
        };
        let Ok(job) = job else { return };
        let items = job.items.into_iter();
        let result = items
            .map(|item| tokenize(item, tokenizer, &mut cache, stop))
            .collect();
        // Fails if the consumer is gone; then there is nothing left to do for this job.
        let _ = job.result.send(result);
    }
}

fn tokenize(
    item: Item<Body>,
    tokenizer: &Tokenizer,
    cache: &mut WordCache,
    stop: &AtomicBool,
) -> Result<TokenItem, DataError> {
    let event = match item.event {
        Event::Document(Body::Text(text)) => {
            Event::Document(encode(&text, tokenizer, cache, stop)?)
        }
        Event::Document(Body::Tokens(tokens)) => Event::Document(tokens),
        Event::NoText => Event::NoText,
        Event::BadLine(warning) => Event::BadLine(warning),
        Event::BadShard(warning) => Event::BadShard(warning),
        Event::EpochEnd => Event::EpochEnd,
    };
    Ok(Item {
        at: item.at,
        next: item.next,
        event,
    })
}

/// Like [`Tokenizer::encode`], but gives up between two pieces of a long text when the loader is
/// dropped.
fn encode(
    text: &str,
    tokenizer: &Tokenizer,
    cache: &mut WordCache,
    stop: &AtomicBool,
) -> Result<Vec<u32>, TokenizerError> {
    let mut ids = Vec::new();
    for piece in pieces(text) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        tokenizer.encode_piece(piece, cache, &mut ids)?;
    }
    Ok(ids)
}
