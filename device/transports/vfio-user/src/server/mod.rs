// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The vfio-user protocol: messages in, calls of a back end, replies out.
