//! How much memory the operations take at their peak: far less than the matrices they never form.
#![allow(unsafe_code, reason = "an allocator is unsafe by its signature")]

use burn::tensor::{Device, Distribution, Int, Tensor};
use lpr_kernels::{causal_attention, cross_entropy_buffers, linear_cross_entropy};
use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// The system's allocator, counting bytes in use and their peak.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// One measurement at a time.
static MEASURING: Mutex<()> = Mutex::new(());

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all requests go to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Relaxed);
        // SAFETY: the caller's promises are those of the system's allocator.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, data: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(data, layout) }
    }
}

/// The number of floats that an action needs at its peak beyond what was there before.
fn peak_floats(action: impl FnOnce()) -> usize {
    let before = IN_USE.load(Relaxed);
    PEAK.store(before, Relaxed);
    action();
    (PEAK.load(Relaxed) - before) / size_of::<f32>()
}

fn random<const D: usize>(dims: [usize; D]) -> Tensor<D> {
    let tensor = Tensor::random(dims, Distribution::Default, &Device::flex());
    Tensor::from_inner(tensor).require_grad()
}

#[test]
fn the_logits_of_a_batch_never_exist() {
    let _alone = MEASURING.lock().expect("no measurement panicked");
    let (rows, hidden, vocab) = (8192, 8, 4096);
    let (x, weight) = (random([rows, hidden]), random([vocab, hidden]));
    let targets = Tensor::<1, Int>::zeros([rows], &Device::flex());
    let tracked = peak_floats(|| {
        let loss = linear_cross_entropy(x.clone(), weight.clone(), targets.clone());
        loss.backward();
    });
    assert!(
        tracked < rows * vocab / 4,
        "{tracked} floats with gradients"
    );
    // What an estimate counts: the kernel's own buffers, and the gradients. The rest is what the products
    // of each thread pack.
    let counted = cross_entropy_buffers(rows, hidden, vocab) + rows * hidden + vocab * hidden;
    assert!(
        (counted..counted * 5 / 4).contains(&tracked),
        "{tracked} floats, {counted} counted"
    );
    let untracked = peak_floats(|| {
        linear_cross_entropy(x.clone().inner(), weight.clone().inner(), targets.clone());
    });
    assert!(untracked < rows * vocab / 8, "{untracked} floats without");
}

#[test]
fn the_scores_of_all_heads_never_exist() {
    let _alone = MEASURING.lock().expect("no measurement panicked");
    let (seq, heads) = (1024, 8);
    let [query, key, value] = [(); 3].map(|()| random([1, seq, heads, 4]));
    let peak = peak_floats(|| {
        let output = causal_attention(query.clone(), key.clone(), value.clone(), None, 0.5);
        output.sum().backward();
    });
    assert!(peak < heads * seq * seq / 8, "{peak} floats");
}
