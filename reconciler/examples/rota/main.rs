//! `rota SOCKET`: the controller over a store in memory, which anybody can reach at SOCKET.

mod controller;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use reconciler::controller::Manager;
use reconciler::objects::{Kinds, StoreObjects};
use reconciler::server::{Server, UnixSocket};
use reconciler::{cascade, seams::Seams, store::Memory};

use controller::{Rota, Shift};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("say where to listen: rota SOCKET")?;
    let (kinds, seams) = (Kinds::new().with::<Rota>().with::<Shift>(), Seams::real());
    let objects = Arc::new(StoreObjects::open(Arc::new(Memory::new()), "/rota", kinds.clone(), seams.clone()).await?);
    let manager = Manager::builder(objects.clone(), seams.clone())
        .controller(controller::controller())
        // What a deleted rota owned goes too: whoever has the store runs this one.
        .controller(cascade::controller(objects.clone(), &kinds, seams.clone()))
        .build();
    let server = Server::new(objects, kinds, seams).metrics(manager.metrics().clone());
    let socket = UnixSocket::bind(&path).await?;
    println!("listening at {path}");
    tokio::select! {
        () = manager.run(std::future::pending()) => {}
        () = server.serve(socket) => {}
    }
    Ok(())
}
