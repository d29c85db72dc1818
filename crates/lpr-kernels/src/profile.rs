//! Where the time of a thread goes: named spans, each with the time that no span inside it took.
//!
//! Off unless [`start`]ed; a span then costs two readings of the clock, and otherwise a look at a
//! flag of the thread.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// All spans of one path together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanTime {
    /// The names given to [`span`], from the outermost span to this one.
    pub path: Vec<&'static str>,
    /// How often the span was entered.
    pub calls: u64,
    /// Time inside, that of inner spans included.
    pub total: Duration,
    /// Time inside, without that of inner spans.
    pub own: Duration,
}

#[derive(Default)]
struct Recorder {
    times: Vec<SpanTime>,
    /// The names of the open spans.
    path: Vec<&'static str>,
    /// For each open span, the time its inner spans have taken so far.
    inner: Vec<Duration>,
}

thread_local! {
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Begins to record the spans of this thread, from nothing.
pub fn start() {
    RECORDER.set(Some(Recorder::default()));
}

/// Ends the recording of this thread: the spans by path, in the order in which the first of each
/// ended. Empty if nothing was recorded.
pub fn stop() -> Vec<SpanTime> {
    RECORDER
        .take()
        .map_or_else(Vec::new, |recorder| recorder.times)
}

/// A span that ends when it is dropped. Spans of a thread must nest.
#[derive(Debug)]
#[must_use = "a span ends where it is dropped"]
pub struct Span {
    start: Option<Instant>,
}

/// Begins a span.
pub fn span(name: &'static str) -> Span {
    let start = RECORDER.with_borrow_mut(|recorder| {
        let recorder = recorder.as_mut()?;
        recorder.path.push(name);
        recorder.inner.push(Duration::ZERO);
        Some(Instant::now())
    });
    Span { start }
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some(start) = self.start else { return };
        let total = start.elapsed();
        RECORDER.with_borrow_mut(|recorder| {
            // A span that outlives its recording belongs to none.
            if let Some(recorder) = recorder.as_mut() {
                recorder.close(total);
            }
        });
    }
}

impl Recorder {
    /// Closes the innermost span.
    fn close(&mut self, total: Duration) {
        let Some(inner) = self.inner.pop() else {
            return;
        };
        if let Some(outer) = self.inner.last_mut() {
            *outer += total;
        }
        let own = total.saturating_sub(inner);
        match self.times.iter_mut().find(|time| time.path == self.path) {
            Some(time) => {
                time.calls += 1;
                time.total += total;
                time.own += own;
            }
            None => self.times.push(SpanTime {
                path: self.path.clone(),
                calls: 1,
                total,
                own,
            }),
        }
        self.path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_spans_are_taken_from_outer_ones() {
        let wait = || std::thread::sleep(Duration::from_millis(2));
        start();
        {
            let _outer = span("outer");
            wait();
            for _ in 0..2 {
                let _inner = span("inner");
                wait();
            }
        }
        let times = stop();
        let [inner, outer] = times.as_slice() else {
            panic!("{times:?}")
        };
        assert_eq!(inner.path, ["outer", "inner"]);
        assert_eq!(outer.path, ["outer"]);
        assert_eq!((inner.calls, outer.calls), (2, 1));
        assert_eq!(inner.own, inner.total);
        assert_eq!(outer.own + inner.total, outer.total);
        assert!(inner.total >= Duration::from_millis(4));
        assert!(outer.own >= Duration::from_millis(2));
    }

    #[test]
    fn nothing_is_recorded_unless_started() {
        drop(span("before"));
        assert!(stop().is_empty());
        start();
        let late = span("late");
        assert!(stop().is_empty());
        drop(late);
        assert!(stop().is_empty());
    }
}
