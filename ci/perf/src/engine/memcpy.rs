// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Copies between memory of the process: what a transfer costs at least.

use super::{Engine, Target};
use crate::memory::Mapping;
use crate::options::Options;

/// Copies at once.
#[derive(Debug)]
pub struct Memcpy {
    target: Target,
    storage: Mapping,
    prepared: Vec<u32>,
}

impl Memcpy {
    /// With memory in place of the file.
    pub fn new(target: Target, options: &Options) -> Result<Self, String> {
        let size = usize::try_from(options.size).map_err(|error| error.to_string())?;
        let storage = Mapping::private(size)
            .map_err(|error| format!("{size} bytes in place of the file: {error}"))?;
        storage.fill(0, size, 0xa5);
        Ok(Self {
            target,
            storage,
            prepared: Vec::new(),
        })
    }
}

#[cfg(test)]
impl Memcpy {
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    #[cfg(test)]
    pub(super) fn storage(&self) -> &Mapping {
        &self.storage
    }
}

impl Engine for Memcpy {
    fn prepare(&mut self, buffer: u32, offset: u64) -> Result<(), String> {
        let (block, offset) = (self.target.block, offset as usize);
        let (buffers, at) = (&self.target.buffers, buffer as usize * block);
        if self.target.writes {
            self.storage.copy_from(offset, buffers, at, block);
        } else {
            buffers.copy_from(at, &self.storage, offset, block);
        }
        self.prepared.push(buffer);
        Ok(())
    }

    fn submit_and_wait(&mut self, _: u32, free: &mut Vec<u32>) -> Result<(), String> {
        free.append(&mut self.prepared);
        Ok(())
    }

    fn system_calls(&self) -> u64 {
        0
    }
}
