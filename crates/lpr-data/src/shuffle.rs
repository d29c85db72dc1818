//! Documents in a random order inside windows, from which a position continues exactly.
//!
//! A window is the next documents of the stream, as many as configured, fewer at the end of an
//! epoch or when they are large. Its order is a function of the seed and of the place where it
//! begins, so a position is that place and a count, and going on means to read one window again.

use crate::documents::{Body, Documents, Event, Item, Shuffle, StreamOptions};
use crate::error::DataError;
use crate::position::Cursor;
use crate::random::{key, permutation};

/// A window ends when its texts reach this size, so that memory is bounded: two windows, and the
/// document that ends each.
pub const MAX_WINDOW_BYTES: usize = 1 << 25;

/// The documents of a source, in file order or shuffled.
pub(crate) struct OrderedDocuments {
    documents: Documents,
    shuffle: Option<Shuffle>,
    /// What is left of the window in progress.
    ready: std::vec::IntoIter<Item<Body>>,
    /// The window after it, read item by item while the other is handed out.
    filling: Window,
    /// Items of the first window that were used up before.
    num_used: usize,
}

/// Items that are permuted together.
struct Window {
    start: Cursor,
    items: Vec<Item<Body>>,
    num_bytes: usize,
    end: Option<End>,
}

/// Why a window ends.
enum End {
    Full,
    Epoch(Item<Body>),
    Data,
    Error(DataError),
}

impl Window {
    fn new(start: Cursor) -> Self {
        Self {
            start,
            items: Vec::new(),
            num_bytes: 0,
            end: None,
        }
    }
}

impl OrderedDocuments {
    /// A stream whose first item is the one at `start`.
    pub(crate) fn new(options: StreamOptions, start: Cursor) -> Self {
        let window_start = Cursor { index: 0, ..start };
        Self {
            shuffle: options.shuffle,
            documents: Documents::new(options, window_start),
            ready: Vec::new().into_iter(),
            filling: Window::new(window_start),
            num_used: start.index,
        }
    }

    /// The next item; `None` after the end of the last epoch.
    ///
    /// # Errors
    /// As [`Documents::next`], before any document of the window it happens in: with the file
    /// repaired, the window is another one. A start that is not inside its window.
    pub(crate) fn next(&mut self) -> Result<Option<Item<Body>>, DataError> {
        let Some(shuffle) = self.shuffle else {
            return self.documents.next();
        };
        loop {
            self.read_one(shuffle.window);
            if let Some(item) = self.ready.next() {
                return Ok(Some(item));
            }
            while self.filling.end.is_none() {
                self.read_one(shuffle.window);
            }
            let next = Window::new(self.documents.cursor());
            let window = std::mem::replace(&mut self.filling, next);
            let num_used = std::mem::take(&mut self.num_used);
            if num_used > 0 && num_used >= window.items.len() {
                return Err(DataError::PositionMismatch {
                    reason: format!(
                        "it is {num_used} documents into a window of {}",
                        window.items.len()
                    ),
                });
            }
            let items = match window.end {
                Some(End::Error(error)) => return Err(error),
                Some(End::Data) => return Ok(None),
                Some(End::Epoch(end)) => {
                    let mut items = permute(window.items, shuffle.key, window.start, end.at);
                    items.push(end);
                    items
                }
                Some(End::Full) | None => {
                    permute(window.items, shuffle.key, window.start, self.filling.start)
                }
            };
            self.ready = items.into_iter();
            self.ready.by_ref().take(num_used).for_each(drop);
        }
    }

    /// Adds an item to the next window, unless that is complete.
    fn read_one(&mut self, max_items: usize) {
        let window = &mut self.filling;
        if window.end.is_some() {
            return;
        }
        match self.documents.next() {
            Ok(Some(item)) => match &item.event {
                Event::EpochEnd => window.end = Some(End::Epoch(item)),
                event => {
                    if let Event::Document(body) = event {
                        window.num_bytes += body.size();
                    }
                    window.items.push(item);
                    let is_full =
                        window.items.len() >= max_items || window.num_bytes >= MAX_WINDOW_BYTES;
                    window.end = is_full.then_some(End::Full);
                }
            },
            Ok(None) => window.end = Some(End::Data),
            Err(error) => window.end = Some(End::Error(error)),
        }
    }
}

/// The items of a window from `start` to `end` in their new order, each at its index in the window.
fn permute(
    items: Vec<Item<Body>>,
    shuffle_key: u64,
    start: Cursor,
    end: Cursor,
) -> Vec<Item<Body>> {
    let place = [
        start.epoch,
        start.shard as u64,
        start.row_group as u64,
        start.row,
    ];
    let order = permutation(items.len(), key(&[shuffle_key, key(&place)]));
    let len = items.len();
    let mut items: Vec<Option<Item<Body>>> = items.into_iter().map(Some).collect();
    let at = |index| match index {
        index if index == len => end,
        index => Cursor { index, ..start },
    };
    let chosen = order.into_iter().filter_map(|from| items[from].take());
    let place = |(index, item): (usize, Item<Body>)| Item {
        at: at(index),
        next: at(index + 1),
        event: item.event,
    };
    chosen.enumerate().map(place).collect()
}
