//! Answers of a streaming call on their way to its reader.
//!
//! What is large is a page: it is read from the log when the connection asks for it, and not before. A reader that takes nothing
//! costs nothing, and one that takes little holds no more than its connection's share of pages.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use sync_core::limits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::Stream;
use tonic::Status;

use crate::failure::CallError;

/// Answers that one stream holds back before its sender waits.
const ANSWERS_MAX: usize = 1;

/// An answer, and for a page its part of the connection's share.
type Held<T> = (Result<T, Status>, Option<OwnedSemaphorePermit>);

/// Both ends of a stream of answers; `pages` is the connection's share.
pub(crate) fn channel<T>(pages: Arc<Semaphore>) -> (Answers<T>, AnswerStream<T>) {
    let (sender, receiver) = mpsc::channel(ANSWERS_MAX);
    let wanted = Arc::new(Semaphore::new(0));
    let stream = AnswerStream { receiver, wanted: Arc::clone(&wanted), being_sent: None };
    (Answers { sender, wanted, pages }, stream)
}

/// Where a streaming call puts its answers. Holds back at most [`ANSWERS_MAX`]; a slow reader slows its own stream.
pub(crate) struct Answers<T> {
    sender: mpsc::Sender<Held<T>>,
    /// Has a permit while the connection waits for something to send.
    wanted: Arc<Semaphore>,
    pages: Arc<Semaphore>,
}

impl<T> Clone for Answers<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), wanted: Arc::clone(&self.wanted), pages: Arc::clone(&self.pages) }
    }
}

impl<T> Answers<T> {
    /// Sends what is small.
    ///
    /// # Errors
    /// [`CallError::HungUp`].
    pub(crate) async fn send(&self, answer: T) -> Result<(), CallError> {
        self.sender.send((Ok(answer), None)).await.map_err(|_| CallError::HungUp)
    }

    /// Waits until the connection asks for more, and has room for a page.
    ///
    /// # Errors
    /// [`CallError::HungUp`].
    pub(crate) async fn reserve(&self) -> Result<Place<'_, T>, CallError> {
        let place = self.sender.reserve().await.map_err(|_| CallError::HungUp)?;
        self.wanted.acquire().await.map_err(|_| CallError::HungUp)?.forget();
        // The semaphore is never closed.
        let room = Arc::clone(&self.pages).acquire_owned().await.map_err(|_| CallError::HungUp)?;
        Ok(Place { place, room })
    }

    /// Resolves when nobody reads any more.
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }

    /// Says why there is no more. Bounded: a reader that takes nothing is not waited for.
    pub(crate) async fn end(&self, why: Status) {
        let _ = self.sender.send_timeout((Err(why), None), limits::RETRY_FIRST).await;
    }
}

/// A place for one page; see [`Answers::reserve`].
pub(crate) struct Place<'a, T> {
    place: mpsc::Permit<'a, Held<T>>,
    room: OwnedSemaphorePermit,
}

impl<T> Place<'_, T> {
    pub(crate) fn send(self, answer: T) {
        self.place.send((Ok(answer), Some(self.room)));
    }
}

/// What a connection sends. It asks for the next answer when it has room for it.
pub(crate) struct AnswerStream<T> {
    receiver: mpsc::Receiver<Held<T>>,
    wanted: Arc<Semaphore>,
    /// The last page stands in the connection until the next answer is asked for.
    being_sent: Option<OwnedSemaphorePermit>,
}

impl<T> Stream for AnswerStream<T> {
    type Item = Result<T, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.being_sent = None;
        match self.receiver.poll_recv(cx) {
            Poll::Ready(next) => {
                self.wanted.forget_permits(1);
                Poll::Ready(next.map(|(answer, room)| {
                    self.being_sent = room;
                    answer
                }))
            }
            Poll::Pending => {
                if self.wanted.available_permits() == 0 {
                    self.wanted.add_permits(1);
                }
                Poll::Pending
            }
        }
    }
}

impl<T> Drop for AnswerStream<T> {
    fn drop(&mut self) {
        self.wanted.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn polled<T>(work: Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        work.poll(&mut Context::from_waker(std::task::Waker::noop()))
    }

    fn next(stream: &mut AnswerStream<u8>) -> Poll<Option<u8>> {
        let next = Pin::new(stream).poll_next(&mut Context::from_waker(std::task::Waker::noop()));
        next.map(|answer| answer.map(|answer| answer.unwrap()))
    }

    #[test]
    fn a_page_is_read_when_the_connection_asks_and_not_before() {
        let (answers, mut stream) = channel(Arc::new(Semaphore::new(2)));
        let mut reading = Box::pin(answers.reserve());
        assert!(polled(reading.as_mut()).is_pending(), "nobody asked");
        assert!(next(&mut stream).is_pending());
        let Poll::Ready(Ok(place)) = polled(reading.as_mut()) else { panic!("it was asked for") };
        place.send(1);
        // Nobody asks while the first one waits.
        let mut reading = Box::pin(answers.reserve());
        assert!(polled(reading.as_mut()).is_pending());
        assert_eq!(next(&mut stream), Poll::Ready(Some(1)));
        assert!(polled(reading.as_mut()).is_pending(), "it is being sent");
        assert!(next(&mut stream).is_pending());
        assert!(polled(reading.as_mut()).is_ready());
        drop(reading);
        drop(stream);
        assert!(matches!(polled(Box::pin(answers.reserve()).as_mut()), Poll::Ready(Err(CallError::HungUp))));
    }

    #[test]
    fn the_streams_of_a_connection_share_its_pages() {
        let pages = Arc::new(Semaphore::new(1));
        let ((one, mut first), (two, mut second)) = (channel(Arc::clone(&pages)), channel(pages));
        assert!(next(&mut first).is_pending() && next(&mut second).is_pending());
        let Poll::Ready(Ok(place)) = polled(Box::pin(one.reserve()).as_mut()) else { panic!("there is room") };
        place.send(1);
        assert_eq!(next(&mut first), Poll::Ready(Some(1)));
        let mut reading = Box::pin(two.reserve());
        assert!(polled(reading.as_mut()).is_pending(), "the first page is not gone yet");
        assert!(next(&mut first).is_pending());
        assert!(polled(reading.as_mut()).is_ready());
    }
}
