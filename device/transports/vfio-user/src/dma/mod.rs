// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Guest memory as the client maps it for DMA.
