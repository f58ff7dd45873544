// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device configuration as the driver sees it, and its generation (VIRTIO 1.3, 2.5).

/// The last seen bytes of the device configuration.
///
/// # Invariants
///
/// `generation` has changed since the driver last read it if `seen` has.
#[derive(Debug)]
pub(crate) struct DeviceConfig {
    seen: Vec<u8>,
    generation: u8,
}

impl DeviceConfig {
    /// A configuration of `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            seen: vec![0; bytes],
            generation: 0,
        }
    }

    /// Records the present bytes, before the driver reads them or their generation.
    ///
    /// Reads of the bytes are compared, not only reads of the generation. So the driver notices a
    /// configuration that changes and changes back between two reads of the generation, if it has
    /// read any byte meanwhile.
    pub(crate) fn update(&mut self, mut now: Vec<u8>) {
        now.resize(self.seen.len(), 0);
        if now != self.seen {
            self.generation = self.generation.wrapping_add(1);
            self.seen = now;
        }
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.seen
    }

    /// The generation of the bytes.
    pub(crate) fn generation(&self) -> u8 {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_changes_with_the_bytes() {
        let mut config = DeviceConfig::new(2);
        config.update(vec![0, 0]);
        assert_eq!(config.generation(), 0);
        config.update(vec![1, 2]);
        config.update(vec![1, 2]);
        assert_eq!((config.bytes(), config.generation()), (&[1, 2][..], 1));
        // As many times as there are generations.
        for round in 0..=u8::MAX {
            config.update(vec![round, 3]);
        }
        assert_eq!(config.generation(), 1);
    }

    #[test]
    fn length_is_constant() {
        let mut config = DeviceConfig::new(2);
        config.update(vec![1]);
        assert_eq!(config.bytes(), [1, 0]);
        config.update(vec![1, 0, 5]);
        assert_eq!((config.bytes(), config.generation()), (&[1, 0][..], 1));
    }
}
