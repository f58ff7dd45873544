// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The messages that make up the state of a back end.
//!
//! | message | kept until |
//! |---|---|
//! | `SET_OWNER`, `SET_PROTOCOL_FEATURES` | `RESET_OWNER` |
//! | `SET_FEATURES` | `RESET_OWNER`, `RESET_DEVICE` |
//! | `SET_MEM_TABLE` | the next one |
//! | `SET_VRING_NUM`, `_ADDR`, `_BASE`, `_ERR` | the next one; `GET_VRING_BASE` sets the base |
//! | `SET_VRING_KICK`, `_CALL` | the next one, `GET_VRING_BASE` |
//! | `SET_VRING_ENABLE` | the next one, `RESET_DEVICE` |
//!
//! The base of a queue that runs is that of its start. The worker does not use it then, because
//! the record of what is in flight says where the queue is. A write to the configuration space
//! is not kept: the space is read-only.

use crate::message::{Message, request};

/// Greatest number of queues: kick and call messages have 8 bits for the index of a queue.
const MAX_QUEUES: usize = 256;

/// The protocol feature `REPLY_ACK`.
const REPLY_ACK: u64 = 1 << 3;

/// The bits of a kick or call message that are the index of the queue.
const INDEX_MASK: u32 = 0xff;

/// State of one queue.
#[derive(Clone, Debug, Default)]
struct Vring {
    num: Option<Message>,
    base: Option<Message>,
    addr: Option<Message>,
    call: Option<Message>,
    err: Option<Message>,
    kick: Option<Message>,
    enable: Option<Message>,
}

/// State of a back end.
#[derive(Debug, Default)]
pub(crate) struct State {
    owner: Option<Message>,
    protocol_features: Option<Message>,
    features: Option<Message>,
    memory: Option<Message>,
    vrings: Vec<Vring>,
}

/// Number of replies of a worker that [`State::replay`] causes.
pub(crate) const REPLAY_REPLIES: u32 = 3;

impl State {
    /// Whether a worker replies to a message.
    pub(crate) fn has_reply(&self, message: &Message) -> bool {
        match message.request {
            request::GET_FEATURES
            | request::GET_VRING_BASE
            | request::GET_PROTOCOL_FEATURES
            | request::GET_QUEUE_NUM
            | request::GET_CONFIG
            | request::GET_INFLIGHT_FD
            | request::GET_MAX_MEM_SLOTS
            | request::GET_STATUS
            | request::GET_SHARED_OBJECT
            | request::SET_DEVICE_STATE_FD
            | request::CHECK_DEVICE_STATE
            | request::GET_SHMEM_CONFIG => true,
            request::SET_PROTOCOL_FEATURES => message.needs_reply() && acknowledges(Some(message)),
            _ => message.needs_reply() && acknowledges(self.protocol_features.as_ref()),
        }
    }

    fn vring(&mut self, index: Option<u32>) -> Option<&mut Vring> {
        let index = usize::try_from(index?).ok()?;
        if index >= MAX_QUEUES {
            return None;
        }
        if self.vrings.len() <= index {
            self.vrings.resize_with(index + 1, Vring::default);
        }
        self.vrings.get_mut(index)
    }

    /// Remembers a request that a worker has handled, or will handle; `reply` is the reply, if
    /// there was one. Returns the queue that the request has stopped.
    pub(crate) fn remember(&mut self, message: &Message, reply: Option<&Message>) -> Option<u16> {
        let is_set = message.request != request::GET_VRING_BASE;
        if is_set && reply.is_some_and(|reply| reply.number() != Some(0)) {
            // Refused.
            return None;
        }
        let copy = || Some(message.without_need_reply());
        let index = message.word(0);
        let masked = index.map(|index| index & INDEX_MASK);
        match message.request {
            request::SET_OWNER => self.owner = copy(),
            request::SET_PROTOCOL_FEATURES => self.protocol_features = copy(),
            request::SET_FEATURES => self.features = copy(),
            request::SET_MEM_TABLE => self.memory = copy(),
            request::RESET_OWNER => {
                self.owner = None;
                self.protocol_features = None;
                self.features = None;
            }
            request::RESET_DEVICE => {
                self.features = None;
                for vring in &mut self.vrings {
                    vring.enable = None;
                }
            }
            request::SET_VRING_NUM => self.vring(index)?.num = copy(),
            request::SET_VRING_ADDR => self.vring(index)?.addr = copy(),
            request::SET_VRING_BASE => self.vring(index)?.base = copy(),
            request::SET_VRING_ENABLE => self.vring(index)?.enable = copy(),
            request::SET_VRING_KICK => self.vring(masked)?.kick = copy(),
            request::SET_VRING_CALL => self.vring(masked)?.call = copy(),
            request::SET_VRING_ERR => self.vring(masked)?.err = copy(),
            request::GET_VRING_BASE => {
                let vring = self.vring(index)?;
                vring.kick = None;
                vring.call = None;
                vring.base = reply.map(|reply| Message {
                    body: reply.body.clone(),
                    ..Message::new(request::SET_VRING_BASE)
                });
                return u16::try_from(index?).ok();
            }
            _ => {}
        }
        None
    }

    /// The messages that bring a new worker into this state. `back_channel` is among them, at its
    /// place. The last one has a reply, so whoever gets that knows that the worker has handled
    /// all of them.
    pub(crate) fn replay(&self, back_channel: Option<Message>) -> Vec<Message> {
        // The library behind the worker wants to be asked for its features first.
        let mut messages = vec![
            Message::new(request::GET_FEATURES),
            Message::new(request::GET_PROTOCOL_FEATURES),
        ];
        let device = [&self.owner, &self.protocol_features, &back_channel];
        let device = device.into_iter().chain([&self.features, &self.memory]);
        messages.extend(device.flatten().cloned());
        for vring in &self.vrings {
            let Vring {
                num,
                base,
                addr,
                call,
                err,
                kick,
                enable,
            } = vring;
            let vring = [num, base, addr, call, err, kick, enable];
            messages.extend(vring.into_iter().flatten().cloned());
        }
        messages.push(Message::new(request::GET_FEATURES));
        messages
    }
}

/// Whether these protocol features have acknowledgements.
fn acknowledges(features: Option<&Message>) -> bool {
    features.is_some_and(|features| features.number().unwrap_or(0) & REPLY_ACK != 0)
}

#[cfg(test)]
mod tests {
    use super::request::*;
    use super::*;

    fn vring(request: u32, index: u32, value: u32) -> Message {
        let words = [index, value];
        let body: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
        Message::with_body(request, body)
    }

    fn number(request: u32, value: u64) -> Message {
        Message::with_body(request, value.to_ne_bytes())
    }

    /// Requests of a replay, with the second word of those about a queue.
    fn replayed(state: &State) -> Vec<(u32, Option<u32>)> {
        let messages = state.replay(None);
        let described = messages.iter().map(|m| (m.request, m.word(4)));
        let replies = messages.iter().filter(|m| state.has_reply(m)).count();
        assert_eq!(replies, REPLAY_REPLIES as usize);
        let mut described: Vec<_> = described.collect();
        let last = described.len() - 1;
        assert_eq!(described[0].0, GET_FEATURES);
        assert_eq!(described[1].0, GET_PROTOCOL_FEATURES);
        assert_eq!(described[last].0, GET_FEATURES);
        described.drain(2..last).collect()
    }

    fn started() -> State {
        let mut state = State::default();
        for message in [
            number(SET_PROTOCOL_FEATURES, REPLY_ACK),
            Message::new(SET_OWNER),
            number(SET_FEATURES, 7).with_need_reply(),
            Message::new(GET_CONFIG),
            Message::new(SET_MEM_TABLE),
            vring(SET_VRING_NUM, 0, 256),
            vring(SET_VRING_BASE, 0, 0),
            vring(SET_VRING_ADDR, 0, 1),
            vring(SET_VRING_KICK, 0, 0),
            vring(SET_VRING_CALL, 0, 0),
            vring(SET_VRING_ENABLE, 0, 1),
            vring(SET_VRING_NUM, 2, 128),
        ] {
            assert_eq!(state.remember(&message, None), None);
        }
        state
    }

    #[test]
    fn a_replay_has_the_messages_of_a_start_in_the_order_that_a_worker_needs() {
        let expected = [
            (SET_OWNER, None),
            (SET_PROTOCOL_FEATURES, Some(0)),
            (SET_FEATURES, Some(0)),
            (SET_MEM_TABLE, None),
            (SET_VRING_NUM, Some(256)),
            (SET_VRING_BASE, Some(0)),
            (SET_VRING_ADDR, Some(1)),
            (SET_VRING_CALL, Some(0)),
            (SET_VRING_KICK, Some(0)),
            (SET_VRING_ENABLE, Some(1)),
            (SET_VRING_NUM, Some(128)),
        ];
        assert_eq!(replayed(&started()), expected);
    }

    #[test]
    fn a_queue_that_was_stopped_has_its_last_base_and_does_not_start() {
        let mut state = started();
        let get = vring(GET_VRING_BASE, 0, 0);
        let reply = vring(GET_VRING_BASE, 0, 77);
        assert_eq!(state.remember(&get, Some(&reply)), Some(0));
        let messages = replayed(&state);
        assert!(messages.contains(&(SET_VRING_BASE, Some(77))));
        assert!(
            !messages
                .iter()
                .any(|m| m.0 == SET_VRING_KICK || m.0 == SET_VRING_CALL)
        );
        state.remember(&Message::new(RESET_DEVICE), None);
        let messages = replayed(&state);
        assert!(
            !messages
                .iter()
                .any(|m| m.0 == SET_FEATURES || m.0 == SET_VRING_ENABLE)
        );
    }

    #[test]
    fn what_a_worker_refused_is_not_remembered() {
        let mut state = started();
        let (before, refusal) = (replayed(&state), Message::reply(SET_VRING_NUM, 1));
        state.remember(&vring(SET_VRING_NUM, 0, 3), Some(&refusal));
        assert_eq!(replayed(&state), before);
        let accepted = Message::reply(SET_VRING_NUM, 0);
        state.remember(&vring(SET_VRING_NUM, 0, 3), Some(&accepted));
        assert!(replayed(&state).contains(&(SET_VRING_NUM, Some(3))));
    }

    #[test]
    fn only_what_was_negotiated_is_acknowledged() {
        let need = |request| Message::new(request).with_need_reply();
        let mut state = State::default();
        assert!(!state.has_reply(&need(SET_OWNER)));
        assert!(!state.has_reply(&number(SET_PROTOCOL_FEATURES, 0).with_need_reply()));
        assert!(state.has_reply(&number(SET_PROTOCOL_FEATURES, REPLY_ACK).with_need_reply()));
        state.remember(&number(SET_PROTOCOL_FEATURES, REPLY_ACK), None);
        assert!(state.has_reply(&need(SET_OWNER)));
        assert!(!state.has_reply(&Message::new(SET_OWNER)));
    }

    proptest::proptest! {
        /// No message of a monitor can harm the supervisor.
        #[test]
        fn any_message_can_be_remembered(
            messages in proptest::collection::vec(
                (0..50u32, proptest::collection::vec(proptest::num::u8::ANY, 0..24)),
                0..50,
            ),
        ) {
            let mut state = State::default();
            for (request, body) in messages {
                let message = Message::with_body(request, body);
                state.has_reply(&message);
                state.remember(&message, None);
                state.remember(&message, Some(&message));
                state.replay(None);
            }
            assert!(state.vrings.len() <= MAX_QUEUES);
        }
    }
}
