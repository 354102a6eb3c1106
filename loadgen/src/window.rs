//! Messages in flight of one source: sent, and not yet settled by all their receivers.
//!
//! Invariant: a slot is zero exactly when the sequence number it stands for is not in flight.

/// A closed window.
#[derive(Debug)]
pub struct Window {
    /// Receivers that have not settled, by sequence number modulo the number of slots.
    slots: Box<[u32]>,
    next: u64,
    in_flight: u32,
    in_flight_max: u32,
}

impl Window {
    /// At most `in_flight_max` messages at a time, at least one.
    pub fn new(in_flight_max: u32) -> Self {
        let in_flight_max = in_flight_max.max(1);
        let slots = vec![0; (in_flight_max as usize).next_power_of_two()].into_boxed_slice();
        Self { slots, next: 0, in_flight: 0, in_flight_max }
    }

    /// True when another message may be sent. The oldest unsettled message holds the window even when later ones
    /// are settled.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.in_flight < self.in_flight_max && self.slots[self.slot(self.next)] == 0
    }

    /// Sends one message to `receivers` (at least one); the window must be open.
    #[inline]
    pub fn send(&mut self, receivers: u32) {
        debug_assert!(self.is_open() && receivers > 0);
        let slot = self.slot(self.next);
        self.slots[slot] = receivers;
        self.next += 1;
        self.in_flight += 1;
    }

    /// One receiver settled `sequence`. True when it was the last one, so that the window may have opened. Numbers
    /// that are not in flight are ignored.
    #[inline]
    pub fn settle(&mut self, sequence: u64) -> bool {
        let slot = self.slot(sequence);
        if sequence >= self.next || self.next - sequence > self.slots.len() as u64 || self.slots[slot] == 0 {
            return false;
        }
        self.slots[slot] -= 1;
        let settled = self.slots[slot] == 0;
        self.in_flight -= u32::from(settled);
        settled
    }

    #[inline]
    fn slot(&self, sequence: u64) -> usize {
        sequence as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_settled_by_its_last_receiver() {
        let mut window = Window::new(2);
        window.send(3);
        window.send(3);
        assert!(!window.is_open());
        assert!(!window.settle(0));
        assert!(!window.settle(0));
        assert!(!window.is_open());
        assert!(window.settle(0));
        assert!(window.is_open());
        assert!(!window.settle(0), "settled once is settled");
    }

    #[test]
    fn the_oldest_message_holds_the_window() {
        let mut window = Window::new(4);
        for _ in 0..4 {
            window.send(1);
        }
        assert!(window.settle(2));
        assert!(!window.is_open(), "slot 0 is still taken");
        assert!(window.settle(0));
        assert!(window.is_open());
    }

    #[test]
    fn the_limit_need_not_be_a_power_of_two() {
        let mut window = Window::new(3);
        for _ in 0..3 {
            assert!(window.is_open());
            window.send(1);
        }
        assert!(!window.is_open());
    }

    #[test]
    fn foreign_numbers_change_nothing() {
        let mut window = Window::new(2);
        window.send(1);
        assert!(!window.settle(1));
        assert!(!window.settle(u64::MAX));
        assert!(window.settle(0));
    }
}
