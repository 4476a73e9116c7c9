//! Mutual TLS 1.3 under a link. Each node shows a certificate that the cluster's authority signed
//! and that names `node-ID.spillway`; the handshake of the cluster runs inside.
//!
//! What it costs: a body that is sent is encrypted into memory of its own, once per receiver, and
//! copied into the connection's buffer; one that is received goes through the ring's receive
//! buffers, the encrypted rest of this link, the library's buffer and its plain text before it
//! stands in its slot. Without TLS none of these copies is made.

use std::io::{ErrorKind, Read, Write};

use rustls::Connection;
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use spillway_net::ids::NodeId;
use spillway_net::peer::{MESSAGE_BYTES, Message};
use spillway_runtime::slot_ring::{Slot, SlotMut};

use super::certificates::name_of;

/// What a link with TLS receives now.
enum Wanted {
    /// Nothing: the owner has not said what comes next.
    Nothing,
    Header,
    Body(SlotMut),
}

/// What arrived.
pub(super) enum TlsReceived {
    Header(Message),
    Body(SlotMut),
}

/// One end of a connection with TLS. Receives as a framed connection of the ring does: what the
/// owner asked for, and nothing before it has said what comes next.
pub(super) struct TlsLink {
    connection: Connection,
    /// Bytes as they came from the network, from `encrypted_at` on.
    encrypted: Vec<u8>,
    encrypted_at: usize,
    wanted: Wanted,
    header: Message,
    /// Bytes of the header or body that arrived.
    filled: usize,
    pub is_paused: bool,
}

impl TlsLink {
    pub fn new(mut connection: Connection) -> Self {
        // What may be queued is bounded by the owner of the links.
        connection.set_buffer_limit(None);
        Self {
            connection,
            encrypted: Vec::new(),
            encrypted_at: 0,
            wanted: Wanted::Header,
            header: [0; MESSAGE_BYTES],
            filled: 0,
            is_paused: false,
        }
    }

    /// Whether the other side's certificate is for `node`.
    pub fn is_certified(&self, node: NodeId) -> bool {
        let chain = self.connection.peer_certificates().unwrap_or_default();
        let Some(end) = chain.first() else { return false };
        let parsed = ParsedCertificate::try_from(end);
        parsed.is_ok_and(|parsed| verify_server_name(&parsed, &name_of(node)).is_ok())
    }

    /// Takes bytes from the network.
    pub fn received(&mut self, bytes: &[u8]) {
        self.encrypted.extend_from_slice(bytes);
    }

    /// Whether bytes wait for the owner to say what comes next.
    pub fn is_held_up(&self) -> bool {
        matches!(self.wanted, Wanted::Nothing) && self.encrypted_at < self.encrypted.len()
    }

    pub fn receive_header(&mut self) {
        assert!(matches!(self.wanted, Wanted::Nothing), "what was wanted has not arrived");
        (self.wanted, self.filled) = (Wanted::Header, 0);
    }

    pub fn receive_body(&mut self, body: SlotMut) {
        assert!(matches!(self.wanted, Wanted::Nothing), "what was wanted has not arrived");
        (self.wanted, self.filled) = (Wanted::Body(body), 0);
    }

    /// The next thing that is whole, if what arrived suffices.
    pub fn next(&mut self) -> Result<Option<TlsReceived>, rustls::Error> {
        loop {
            let place = match &mut self.wanted {
                Wanted::Nothing => return Ok(None),
                Wanted::Header => &mut self.header[self.filled..],
                Wanted::Body(slot) => &mut slot[self.filled..],
            };
            let wanted = place.len();
            match self.connection.reader().read(place) {
                // The other side says that it is done. The end of the connection follows.
                Ok(0) => return Ok(None),
                Ok(bytes) => {
                    self.filled += bytes;
                    if bytes == wanted {
                        return Ok(self.whole());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.decrypt()? {
                        return Ok(None);
                    }
                }
                Err(error) => return Err(rustls::Error::General(error.to_string())),
            }
        }
    }

    fn whole(&mut self) -> Option<TlsReceived> {
        match std::mem::replace(&mut self.wanted, Wanted::Nothing) {
            Wanted::Nothing => None,
            Wanted::Header => Some(TlsReceived::Header(self.header)),
            Wanted::Body(slot) => Some(TlsReceived::Body(slot)),
        }
    }

    /// Hands encrypted bytes to the library. Whether there were any.
    fn decrypt(&mut self) -> Result<bool, rustls::Error> {
        let mut rest = &self.encrypted[self.encrypted_at..];
        if rest.is_empty() {
            self.encrypted.clear();
            self.encrypted_at = 0;
            return Ok(false);
        }
        let before = rest.len();
        let read = self.connection.read_tls(&mut rest);
        // It refuses bytes only while plain text waits, and there was none.
        read.map_err(|error| rustls::Error::General(error.to_string()))?;
        self.encrypted_at += before - rest.len();
        self.connection.process_new_packets()?;
        Ok(true)
    }

    /// Encrypts a message. Before the two sides have agreed on keys it is kept.
    pub fn send(&mut self, header: &Message, body: Option<&Slot>, out: &mut Vec<u8>) {
        let mut writer = self.connection.writer();
        for bytes in [Some(&header[..]), body.map(|body| &body[..])].into_iter().flatten() {
            writer.write_all(bytes).expect("there is no limit");
        }
        self.flush(out);
    }

    /// Appends what is to be sent.
    pub fn flush(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            self.connection.write_tls(out).expect("a vector takes everything");
        }
    }
}
