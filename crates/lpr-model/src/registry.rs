//! One list of variants -> everything that has to know all of them.
//!
//! `config_enum!` makes the enum that a config file selects from; `registry!` makes that and the
//! enum of modules (Burn's `Module` is not object safe, so a closed set is an enum pair).
//!
//! ```text
//! registry! {
//!     /// The `[router]` section.
//!     config RouterConfig: RouterKind by "kind";
//!     /// A router of any kind.
//!     module AnyRouter: Router, init(sizes: &RouterSizes, init: &ParamInit<'_>), after_step(StepStatistics);
//!     /// The paper's router.
//!     mod lpr => Lpr("lpr"): LprConfig => LprRouter,
//! }
//! ```
//! expands to
//! ```text
//! mod lpr;
//! pub use lpr::{LprConfig, LprRouter};
//! #[derive(.., Serialize, Deserialize, JsonSchema)] #[serde(tag = "kind")]
//! pub enum RouterConfig { #[serde(rename = "lpr")] Lpr(LprConfig) }      // derefs to dyn RouterKind
//! #[derive(Module, Debug)]
//! pub enum AnyRouter { Lpr(LprRouter) }                                   // derefs to dyn Router
//! impl RouterConfig { fn init(&self, sizes, init) -> AnyRouter { match self { Lpr(c) => Lpr(c.init(sizes, init)) } } }
//! ```
//! `rustfmt` does not follow modules that a macro declares; `just format` names their files.
//! The variant's name is left out of parameter names (see `parameters`).

macro_rules! config_enum {
    ($(#[$doc:meta])* config $Config:ident: $Kind:ident by $tag:literal;
     $($(#[$vdoc:meta])* $Variant:ident($name:literal): $VariantConfig:ty,)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(tag = $tag)]
        pub enum $Config { $($(#[$vdoc])* #[serde(rename = $name)] $Variant($VariantConfig),)+ }

        impl $Config {
            /// Every registered name, in the order of the list.
            pub const NAMES: &'static [&'static str] = &[$($name),+];

            /// The name that selects this variant.
            pub fn name(&self) -> &'static str {
                match self { $(Self::$Variant(_) => $name,)+ }
            }
        }

        impl std::ops::Deref for $Config {
            type Target = dyn $Kind;
            fn deref(&self) -> &Self::Target {
                match self { $(Self::$Variant(config) => config,)+ }
            }
        }
    };
}

macro_rules! registry {
    ($(#[$cdoc:meta])* config $Config:ident: $Kind:ident by $tag:literal;
     $(#[$mdoc:meta])* module $Any:ident: $Trait:ident, init($a:ident: $A:ty, $b:ident: $B:ty), after_step($Statistics:ty);
     $($(#[$vdoc:meta])* mod $file:ident => $Variant:ident($name:literal): $VariantConfig:ident => $Module:ident,)+) => {
        $(mod $file;)+
        $(pub use $file::{$VariantConfig, $Module};)+

        crate::registry::config_enum! {
            $(#[$cdoc])* config $Config: $Kind by $tag;
            $($(#[$vdoc])* $Variant($name): $VariantConfig,)+
        }

        $(#[$mdoc])*
        #[derive(burn::module::Module, Debug)]
        #[allow(clippy::large_enum_variant, reason = "one per layer, never moved around in bulk")]
        pub enum $Any { $($(#[$vdoc])* $Variant($Module),)+ }

        impl $Config {
            /// Makes the module that this config describes.
            pub fn init(&self, $a: $A, $b: $B) -> $Any {
                match self { $(Self::$Variant(config) => $Any::$Variant(config.init($a, $b)),)+ }
            }
        }

        impl $Any {
            /// See the trait's method of this name.
            #[must_use]
            pub fn after_step(self, statistics: &$Statistics) -> Self {
                match self { $(Self::$Variant(module) => Self::$Variant(module.after_step(statistics)),)+ }
            }
        }

        impl std::ops::Deref for $Any {
            type Target = dyn $Trait;
            fn deref(&self) -> &Self::Target {
                match self { $(Self::$Variant(module) => module,)+ }
            }
        }
    };
}

pub(crate) use {config_enum, registry};
