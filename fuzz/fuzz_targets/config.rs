//! A configuration file, and an override in its first line if that starts with `#!`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lpr_train::config::RunConfig;

fuzz_target!(|text: &str| {
    let mut overrides = Vec::new();
    if let Some(argument) = text.lines().next().and_then(|line| line.strip_prefix("#!")) {
        overrides.push(argument.to_owned());
    }
    match RunConfig::parse("x.toml", text, &overrides) {
        // What is accepted is written so that it reads back as the same.
        Ok(config) => {
            let again = RunConfig::parse("x.toml", &config.to_toml(), &[]);
            assert_eq!(again.as_ref(), Ok(&config));
        }
        Err(errors) => assert!(!errors.problems().is_empty() && !errors.to_string().is_empty()),
    }
});
