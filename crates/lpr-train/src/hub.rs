//! The hub for a run: who is told about transfers, and which commits the run stands on.

use lpr_data::{DataError, Hub, HubError, HubSettings};

use crate::config::RunConfig;
use crate::error::TrainError;
use crate::report::{Bars, Downloads, Level, Verbosity};
use crate::resume::Notes;
use crate::signals::StopRequest;

/// The hub of the environment. Transfers are shown on `bars`; a request to stop ends every wait.
pub fn open(stop: &StopRequest, verbosity: Verbosity, bars: &Bars) -> Hub {
    let stop = stop.clone();
    let downloads = Downloads::new(verbosity, bars);
    Hub::new(
        HubSettings::from_env(),
        Box::new(move || stop.is_set()),
        Box::new(move |event| downloads.show(&event)),
    )
}

/// Replaces every revision on the hub by the commit it means: the one that `saved` stands on, if it
/// names the same file, else the present one. Notes what was replaced.
///
/// # Errors
/// If the hub cannot be asked.
pub fn pin(
    config: &mut RunConfig,
    saved: Option<&RunConfig>,
    notes: &mut Notes,
) -> Result<(), TrainError> {
    let known: Vec<String> = saved.map_or_else(Vec::new, |saved| {
        let data = &saved.data;
        let tokenizer = std::iter::once(&data.tokenizer);
        let sources = data.train.iter().chain(&data.validation);
        sources.chain(tokenizer).cloned().collect()
    });
    let data = &mut config.data;
    let sources = data.train.iter_mut().chain(&mut data.validation);
    for source in sources.chain([&mut data.tokenizer]) {
        let pinned = data.hub.pin(source, &known).map_err(DataError::from)?;
        if pinned != *source {
            let text = format!("{source} is {pinned} in this run");
            notes.push((Level::Info, text));
            *source = pinned;
        }
    }
    Ok(())
}

/// What is wrong with a source or tokenizer on the network, as far as its address tells.
pub fn address_problem(address: &str) -> Option<String> {
    match Hub::check_address(address) {
        Err(HubError::BadAddress { address, reason }) => Some(format!(
            "has {address:?}, which cannot be read: {reason}; write \
             hf://datasets/OWNER/NAME[@REVISION]/PATH, hf://OWNER/NAME[@REVISION] for a tokenizer, \
             or https://..."
        )),
        _ => None,
    }
}
