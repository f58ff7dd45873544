// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The returns to service without unbind: an administrator resets the device, or the
//! driver does after a request timed out.

use ringbar_uapi as uapi;

use super::device::LyingDevice;
use super::stop::InFlight;
use crate::case::{Case, Context, During, Verdict, expect_bytes};
use crate::fixtures::device::{info, last_events};
use crate::fixtures::driver::{appears, expect_working, load, modprobe, remove};
use crate::sys::{self, PAGE, Region};
use crate::{check, check_eq};

/// The driver's message when a request times out.
const LATE: &str = "has not answered a request in time";

/// The driver's message after a reset.
const BACK: &str = "is in service again";

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new("dr5_reset_puts_a_device_back_into_service", out_of_service)
            .provokes(super::ring::BROKEN),
        Case::new("dr5_request_that_takes_too_long_resets_the_device", timeout).provokes(LATE),
        Case::new("dr5_reset_ends_requests_without_a_timeout", without_timeout),
    ]
}

/// Open files continue to work; maps must be made again.
fn out_of_service(context: &Context) -> Verdict {
    const AT: usize = (5 << 20) + 54_321;

    let mut liar = LyingDevice::new(context)?;
    let file = context.open()?;
    let memory = Region::anonymous(PAGE)?;
    context.map()?.store(AT, b"kept");
    for round in 0..3 {
        let during = || format!("round {round}");
        super::ring::take_out_of_service(&liar).during(during)?;
        liar.expect_out_of_service().during(during)?;
        check_eq!(info(&file)?.state, uapi::STATE_OUT_OF_SERVICE, "state");
        liar.log.of_driver()?;
        sys::reset(&file).during(during)?;
        liar.expect_line(&[BACK]).during(during)?;
        check_eq!(info(&file)?.state, uapi::STATE_IN_SERVICE, "state");
        let read = sys::pread(&file, memory.buffer(0, 4), AT as u64).during(during)?;
        check_eq!(read, 4, "bytes read by the old file");
        expect_bytes(&memory.load(0, 4), b"kept", "what the old file reads")?;
        let map = Region::shared(&file, 0, AT.next_multiple_of(PAGE)).during(during)?;
        expect_bytes(&map.load(AT, 4), b"kept", "the new map")?;
        liar.expect_in_order().during(during)?;
    }
    Ok(())
}

/// The driver, loaded with another timeout. Dropping it loads the driver with its
/// default.
struct LoadedDriver<'a>(&'a Context);

impl<'a> LoadedDriver<'a> {
    fn with_timeout(context: &'a Context, seconds: u32) -> Verdict<Self> {
        remove()?;
        let loaded = Self(context);
        let parameter = format!("timeout_s={seconds}");
        check!(modprobe(&["ringbar", &parameter])?, "modprobe failed");
        appears(context)?;
        Ok(loaded)
    }
}

impl Drop for LoadedDriver<'_> {
    fn drop(&mut self) {
        if let Err(stop) = remove().and_then(|()| load(self.0)) {
            eprintln!("loading the driver as it was: {stop:?}");
        }
    }
}

fn timeout(context: &Context) -> Verdict {
    let loaded = LoadedDriver::with_timeout(context, 2)?;
    {
        let mut liar = LyingDevice::new(context)?;
        let requests = InFlight::new(&liar)?;
        // No administrator acts; the driver's timeout ends the requests.
        requests.expect_ended(libc::EIO)?;
        // This waits for the end of the reset.
        expect_working(context, 3)?;
        let lines = liar.log.of_driver()?;
        let said = |words| lines.iter().filter(|line| line.contains(words)).count();
        let counts = (said(LATE), said(BACK), lines.len());
        check_eq!(counts, (1, 1, 2), "lines of both kinds and in all");
        let (_, last) = last_events(&context.open()?, 2)?;
        let expected = [
            (uapi::EVENT_RESET, uapi::RESET_BY_TIMEOUT),
            (uapi::EVENT_STARTED, context.size()),
        ];
        check_eq!(last, expected, "the last events");
        liar.expect_in_order()?;
    }
    drop(loaded);
    expect_working(context, 4)
}

/// Without a timeout, an administrator ends the requests.
fn without_timeout(context: &Context) -> Verdict {
    let loaded = LoadedDriver::with_timeout(context, 0)?;
    {
        let mut liar = LyingDevice::new(context)?;
        let requests = InFlight::new(&liar)?;
        sys::reset(&context.open()?).during(|| "the reset".into())?;
        requests.expect_ended(libc::EIO)?;
        liar.expect_line(&[BACK])?;
        liar.expect_in_order()?;
    }
    drop(loaded);
    expect_working(context, 5)
}
