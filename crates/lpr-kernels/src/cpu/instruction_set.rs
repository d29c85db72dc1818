//! Which vector instructions the loops of this crate use: found out once, in this file only.

use std::{
    env, fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

/// The environment variable that asks for an instruction set.
pub(crate) const VARIABLE: &str = "LPR_KERNELS";

/// The vector instructions a loop is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 with FMA, x86-64 only.
    Avx2,
    /// AVX-512 (F and DQ) with AVX2 and FMA, x86-64 only.
    Avx512,
}

impl InstructionSet {
    const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// The name used in the environment variable `LPR_KERNELS`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2,
            Self::Avx512 => {
                avx2 && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512dq")
            }
        }
    }

    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Self::Portable
    }
}

impl fmt::Display for InstructionSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction set in use: the best one of this CPU that the environment variable `LPR_KERNELS`
/// (`portable`, `avx2` or `avx512`, read once) does not rule out.
pub fn instruction_set() -> InstructionSet {
    Level::current().instruction_set()
}

/// What [`multiply_bf16`] chose last.
static BF16: AtomicBool = AtomicBool::new(false);

/// Whether this CPU has instructions for products of 16-bit brain floats (AVX-512 BF16) that the
/// environment variable `LPR_KERNELS` does not rule out.
pub(crate) fn has_bf16_products() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        instruction_set() == InstructionSet::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Chooses whether the matrix products of this process multiply 16-bit brain floats from now on, which
/// only [`has_bf16_products`] allows.
pub(crate) fn multiply_bf16(bf16: bool) {
    BF16.store(bf16, Relaxed);
}

/// An instruction set that this CPU has been seen to have, and products of 16-bit brain floats or
/// not; the proof that code compiled for them may run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    set: InstructionSet,
    bf16: bool,
}

impl Level {
    /// The level every operation starts with.
    pub(crate) fn current() -> Self {
        static CURRENT: OnceLock<Level> = OnceLock::new();
        #[cfg(test)]
        if let Some(forced) = forced::get() {
            return forced;
        }
        let level = *CURRENT.get_or_init(|| Self::choose(env::var(VARIABLE).ok().as_deref()));
        Self {
            bf16: BF16.load(Relaxed),
            ..level
        }
    }

    fn of(set: InstructionSet) -> Self {
        Self { set, bf16: false }
    }

    /// The same with products of 16-bit brain floats, if the CPU has them.
    #[cfg(test)]
    pub(crate) fn bf16() -> Option<Self> {
        has_bf16_products().then_some(Self {
            set: InstructionSet::Avx512,
            bf16: true,
        })
    }

    /// The same with products of 32-bit floats.
    pub(crate) fn exact(self) -> Self {
        Self::of(self.set)
    }

    /// Whether products multiply 16-bit brain floats.
    pub(crate) fn multiplies_bf16(self) -> bool {
        self.bf16
    }

    /// The best available level that is not above the wished one; anything that is not a name is no
    /// wish.
    fn choose(wish: Option<&str>) -> Self {
        let named = |set: &InstructionSet| wish == Some(set.name());
        let limit = InstructionSet::ALL.into_iter().find(named);
        let limit = limit.unwrap_or(InstructionSet::Avx512);
        let best = Self::available()
            .into_iter()
            .rfind(|level| level.set <= limit);
        best.unwrap_or(Self::of(InstructionSet::Portable))
    }

    /// All levels of this CPU, the portable one first.
    pub(crate) fn available() -> Vec<Self> {
        let available = InstructionSet::ALL
            .into_iter()
            .filter(|set| set.is_available());
        available.map(Self::of).collect()
    }

    pub(crate) fn instruction_set(self) -> InstructionSet {
        self.set
    }
}

/// Lets a test run the operations of its own thread on a level of its choice.
#[cfg(test)]
pub(crate) mod forced {
    use super::Level;
    use std::cell::Cell;

    thread_local! {
        static FORCED: Cell<Option<Level>> = const { Cell::new(None) };
    }

    pub(super) fn get() -> Option<Level> {
        FORCED.get()
    }

    pub(crate) fn with<T>(level: Level, action: impl FnOnce() -> T) -> T {
        FORCED.set(Some(level));
        let result = action();
        FORCED.set(None);
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_limits_the_level_and_nonsense_does_not() {
        let best = *Level::available()
            .last()
            .expect("the portable level exists");
        assert_eq!(Level::choose(None), best);
        assert_eq!(Level::choose(Some("fastest")), best);
        assert_eq!(
            Level::choose(Some("portable")).instruction_set(),
            InstructionSet::Portable
        );
        let limited = Level::choose(Some("avx2")).instruction_set();
        assert_eq!(limited, best.instruction_set().min(InstructionSet::Avx2));
    }
}
