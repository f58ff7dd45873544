// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The result as a bar chart: each job has a bar for each peer, whose length is Ringbar's
//! ratio to that peer.

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontStyle, register_font};

use crate::column::Column;
use crate::report::Report;
use crate::results::BEST_PEER;
use crate::targets::Bound;

/// Width of the picture in pixels.
const WIDTH: u32 = 1100;

/// Left end of the bars in pixels, right of the names of jobs.
const LEFT: i32 = 330;

/// Right end of the longest whisker in pixels, with room for a number.
const RIGHT: i32 = 1020;

/// Height of title and legend above the first bar, in pixels.
const TOP: i32 = 70;

/// Height of the axis below the last bar, in pixels.
const BOTTOM: i32 = 40;

/// Height of a bar and of the gap between two jobs, in pixels.
const BAR: i32 = 13;
const GAP: i32 = 14;

/// Name of the registered font.
const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(220, 220, 220);

/// Colours of the peers, distinguishable for the colour-blind.
const COLOURS: [(Column, RGBColor); 3] = [
    (Column::VirtioBlk, RGBColor(0, 114, 178)),
    (Column::VhostUserBlk, RGBColor(230, 159, 0)),
    (Column::Nvme, RGBColor(0, 158, 115)),
];

/// One bar.
#[derive(Clone, Debug, PartialEq)]
struct Bar {
    colour: RGBColor,
    ratio: f64,
    min: f64,
    max: f64,
}

/// The bars of one job.
#[derive(Clone, Debug, PartialEq)]
struct Group {
    job: String,
    bars: Vec<Bar>,
    target: Option<f64>,
}

fn groups(report: &Report) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for line in &report.ratios {
        let Some((_, colour)) = COLOURS.iter().find(|(peer, _)| peer.name() == line.vs) else {
            continue;
        };
        let bar = Bar {
            colour: *colour,
            ratio: line.ratio,
            min: line.min,
            max: line.max,
        };
        match groups.last_mut() {
            Some(group) if group.job == line.job => group.bars.push(bar),
            _ => groups.push(Group {
                job: line.job.clone(),
                bars: vec![bar],
                target: target(report, &line.job),
            }),
        }
    }
    groups
}

/// Target ratio to the best peer.
fn target(report: &Report, job: &str) -> Option<f64> {
    report
        .targets
        .iter()
        .filter(|target| target.job == job && target.metric.ends_with(BEST_PEER))
        .find_map(|target| match target.bound {
            Bound::AtLeast(bound) => Some(bound),
            Bound::AtMost(_) => None,
        })
}

fn height(groups: &[Group]) -> u32 {
    let bars: i32 = groups
        .iter()
        .map(|group| group.bars.len() as i32 * BAR + GAP)
        .sum();
    (TOP + bars + BOTTOM).unsigned_abs()
}

/// The picture as SVG.
pub fn svg(report: &Report) -> anyhow::Result<String> {
    let groups = groups(report);
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, (WIDTH, height(&groups))).into_drawing_area();
    draw(&area, &groups).context("drawing the SVG picture")?;
    drop(area);
    Ok(text)
}

/// The picture as PNG.
pub fn png(report: &Report) -> anyhow::Result<Vec<u8>> {
    let groups = groups(report);
    let height = height(&groups);
    let mut pixels = vec![0; 3 * WIDTH as usize * height as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area();
    draw(&area, &groups).context("drawing the PNG picture")?;
    drop(area);

    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, WIDTH, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder
        .write_header()
        .and_then(|mut writer| writer.write_image_data(&pixels))
        .context("encoding the PNG picture")?;
    Ok(bytes)
}

/// Distance between two grid lines, chosen for at most some ten lines.
fn step(most: f64) -> f64 {
    [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0]
        .into_iter()
        .find(|step| most / step <= 12.0)
        .unwrap_or(most / 10.0)
}

fn draw<B: DrawingBackend>(area: &DrawingArea<B, Shift>, groups: &[Group]) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    // Both pictures use the same embedded font on every system.
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    register_font(FONT, FontStyle::Normal, font).map_err(|_| anyhow!("the font is invalid"))?;
    let style = |size: i32, horizontal, vertical| {
        let style = (FONT, size).into_font().color(&INK);
        style.pos(Pos::new(horizontal, vertical))
    };

    let most = groups
        .iter()
        .flat_map(|group| group.bars.iter().map(|bar| bar.max).chain(group.target))
        .fold(1.0, f64::max);
    let x = |ratio: f64| LEFT + (f64::from(RIGHT - LEFT) * ratio / most).round() as i32;
    let bottom = height(groups).cast_signed() - BOTTOM;

    area.fill(&WHITE)?;
    let title = "Ringbar's IOPS over those of others: medians of the ratios in the same round";
    area.draw_text(title, &style(18, HPos::Left, VPos::Center), (10, 20))?;
    let mut place = LEFT;
    for (peer, colour) in COLOURS {
        let square = [(place, 42), (place + 12, 54)];
        area.draw(&Rectangle::new(square, colour.filled()))?;
        let label = style(14, HPos::Left, VPos::Center);
        area.draw_text(peer.name(), &label, (place + 18, 48))?;
        place += 140;
    }
    area.draw(&PathElement::new(
        [(place, 42), (place, 54)],
        INK.stroke_width(3),
    ))?;
    let label = style(14, HPos::Left, VPos::Center);
    area.draw_text("target against the best of them", &label, (place + 10, 48))?;

    let step = step(most);
    for i in 0..=(most / step) as i32 {
        let ratio = f64::from(i) * step;
        let line = [(x(ratio), TOP), (x(ratio), bottom)];
        area.draw(&PathElement::new(line, GRID))?;
        let label = style(13, HPos::Center, VPos::Top);
        area.draw_text(&ratio.to_string(), &label, (x(ratio), bottom + 8))?;
    }

    let mut y = TOP + GAP / 2;
    for group in groups {
        let height = group.bars.len() as i32 * BAR;
        let label = style(14, HPos::Right, VPos::Center);
        area.draw_text(&group.job, &label, (LEFT - 10, y + height / 2))?;
        for (bar, top) in group.bars.iter().zip((y..).step_by(BAR as usize)) {
            let rectangle = [(LEFT, top), (x(bar.ratio), top + BAR - 2)];
            area.draw(&Rectangle::new(rectangle, bar.colour.filled()))?;
            let middle = top + BAR / 2 - 1;
            let whisker = [(x(bar.min), middle), (x(bar.max), middle)];
            area.draw(&PathElement::new(whisker, INK))?;
            let label = style(11, HPos::Left, VPos::Center);
            let figure = format!("{:.2}", bar.ratio);
            area.draw_text(&figure, &label, (x(bar.max) + 4, middle))?;
        }
        if let Some(target) = group.target {
            let line = [(x(target), y - 3), (x(target), y + height + 1)];
            area.draw(&PathElement::new(line, INK.stroke_width(3)))?;
        }
        y += height + GAP;
    }
    // Ratio 1: as fast as the peer.
    let line = [(x(1.0), TOP), (x(1.0), bottom)];
    area.draw(&PathElement::new(line, INK.stroke_width(1)))?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;
    use crate::results::tests::results;

    #[test]
    fn each_peer_has_a_bar_and_each_job_its_target() {
        let groups = groups(&report());
        assert_eq!(groups.len(), 1);
        assert_eq!(groups[0].target, Some(2.5));
        let ratios: Vec<_> = groups[0].bars.iter().map(|bar| bar.ratio).collect();
        assert_eq!(ratios, [4.0, 4.0], "neither floor nor polled queues");
    }

    #[test]
    fn both_pictures_are_drawn() {
        let text = svg(&report()).unwrap();
        assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
        assert!(text.contains("randread-4k-qd32-io_uring"), "{text}");
        let bytes = png(&report()).unwrap();
        let mut decoder = png::Decoder::new(std::io::Cursor::new(bytes))
            .read_info()
            .unwrap();
        let mut pixels = vec![0; decoder.output_buffer_size().unwrap()];
        let info = decoder.next_frame(&mut pixels).unwrap();
        assert_eq!(info.width, WIDTH);
        let (_, colour) = COLOURS[0];
        let wanted = [colour.0, colour.1, colour.2];
        assert!(
            pixels.chunks_exact(3).any(|pixel| pixel == wanted),
            "no bar"
        );
    }

    #[test]
    fn a_result_without_peers_can_be_drawn() {
        let alone = Report {
            ratios: Vec::new(),
            ..report()
        };
        assert!(svg(&alone).is_ok() && png(&alone).is_ok());
        assert!(results(&[]).lines().is_empty());
    }

    #[test]
    fn the_grid_stays_readable() {
        assert_eq!(step(1.0), 0.5);
        assert_eq!(step(9.0), 1.0);
        assert_eq!(step(4000.0), 400.0);
    }
}
