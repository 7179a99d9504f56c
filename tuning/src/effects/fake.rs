//! A machine made of files with a kernel that answers: it binds drivers, makes virtual functions, and has only so many
//! hugepages.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::symlink;

use super::{CallError, Effects};
use crate::host::Host;

/// What the real kernel and the real programs would do, as far as tests need it.
#[derive(Debug)]
pub(crate) struct Fake {
    _dir: tempfile::TempDir,
    host: Host,
    /// The kernel's own choice for a device.
    natural: RefCell<BTreeMap<String, String>>,
    /// Drivers that take no device.
    pub(crate) unwilling: RefCell<BTreeSet<String>>,
    /// Modules that can be loaded.
    pub(crate) loadable: RefCell<BTreeSet<String>>,
    /// Hugepages of any size that there is memory for, from the start and after compaction.
    pub(crate) room: Cell<usize>,
    pub(crate) room_compacted: Cell<usize>,
    /// All that was done, in order.
    pub(crate) done: RefCell<Vec<String>>,
}

impl Fake {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::at(dir.path());
        let fake = Self {
            _dir: dir,
            host,
            natural: RefCell::default(),
            unwilling: RefCell::default(),
            loadable: RefCell::default(),
            room: Cell::new(0),
            room_compacted: Cell::new(0),
            done: RefCell::default(),
        };
        fake.put("/sys/bus/pci/drivers_probe", "");
        fake.driver("vfio-pci");
        fake
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// Makes a file, and the folders that it lies in.
    pub(crate) fn put(&self, path: &str, text: &str) {
        let path = self.host.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Makes a link to a place in this machine.
    pub(crate) fn link(&self, path: &str, to: &str) {
        self.link_to(path, self.host.path(to).to_str().unwrap());
    }

    /// Makes a link to exactly this.
    pub(crate) fn link_to(&self, path: &str, to: &str) {
        let path = self.host.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(to, path).unwrap();
    }

    pub(crate) fn driver(&self, name: &str) {
        for file in ["bind", "unbind"] {
            self.put(&format!("/sys/bus/pci/drivers/{name}/{file}"), "");
        }
    }

    /// Makes a PCI device that is bound to `driver`, whose own choice that is.
    pub(crate) fn device(&self, bdf: &str, class: &str, driver: Option<&str>, group: Option<u32>) {
        let folder = format!("/sys/bus/pci/devices/{bdf}");
        self.put(&format!("{folder}/class"), class);
        self.put(&format!("{folder}/vendor"), "0x8086\n");
        self.put(&format!("{folder}/device"), "0x10c9\n");
        self.put(&format!("{folder}/driver_override"), "(null)\n");
        self.put(&format!("{folder}/modalias"), &format!("pci:{bdf}\n"));
        if let Some(driver) = driver {
            self.driver(driver);
            self.natural.borrow_mut().insert(bdf.into(), driver.into());
            self.link(&format!("{folder}/driver"), &format!("/sys/bus/pci/drivers/{driver}"));
        }
        if let Some(group) = group {
            let group = format!("/sys/kernel/iommu_groups/{group}");
            self.link(&format!("{group}/devices/{bdf}"), &folder);
            self.link(&format!("{folder}/iommu_group"), &group);
        }
    }

    pub(crate) fn driver_of(&self, bdf: &str) -> Option<String> {
        self.host.link_name(format!("/sys/bus/pci/devices/{bdf}/driver"))
    }

    fn attach(&self, bdf: &str, driver: &str) -> io::Result<()> {
        let folder = format!("/sys/bus/pci/drivers/{driver}");
        if !self.host.has(&folder) || self.unwilling.borrow().contains(driver) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if self.driver_of(bdf).is_none() {
            self.link(&format!("/sys/bus/pci/devices/{bdf}/driver"), &folder);
        }
        Ok(())
    }

    fn probe(&self, bdf: &str) {
        let chosen = self.host.read(format!("/sys/bus/pci/devices/{bdf}/driver_override"));
        let chosen = chosen.filter(|name| !name.is_empty() && name != "(null)");
        if let Some(driver) = chosen.or_else(|| self.natural.borrow().get(bdf).cloned()) {
            // The kernel's own answer to a device that nobody takes is silence, too.
            let _ = self.attach(bdf, &driver);
        }
    }

    fn virtual_functions(&self, bdf: &str, wanted: usize) -> io::Result<()> {
        let folder = format!("/sys/bus/pci/devices/{bdf}");
        let now: usize = self.host.value(format!("{folder}/sriov_numvfs")).unwrap();
        if now != 0 && wanted != 0 {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        for number in 0..now {
            fs::remove_file(self.host.path(format!("{folder}/virtfn{number}"))).unwrap();
            fs::remove_dir_all(self.host.path(format!("/sys/bus/pci/devices/0000:0a:10.{number}"))).unwrap();
            fs::remove_dir_all(self.host.path(format!("/sys/kernel/iommu_groups/{}", 50 + number))).unwrap();
        }
        for number in 0..wanted {
            let name = format!("0000:0a:10.{number}");
            self.device(&name, "0x020000", Some("igbvf"), Some(50 + number as u32));
            self.link(&format!("{folder}/virtfn{number}"), &format!("/sys/bus/pci/devices/{name}"));
        }
        Ok(())
    }
}

impl Effects for Fake {
    fn write(&self, path: &str, text: &str) -> io::Result<()> {
        self.done.borrow_mut().push(format!("{} > {path}", text.trim()));
        let text = text.trim();
        if path.ends_with("/driver/unbind") {
            return fs::remove_file(self.host.path(format!("/sys/bus/pci/devices/{text}/driver")));
        }
        if let Some(driver) = path.strip_prefix("/sys/bus/pci/drivers/").and_then(|rest| rest.strip_suffix("/bind")) {
            return self.attach(text, driver);
        }
        if path == "/proc/sys/vm/compact_memory" {
            self.room.set(self.room_compacted.get());
        }
        let mut text = text.to_owned();
        if path.ends_with("/nr_hugepages") {
            text = text.parse::<usize>().unwrap().min(self.room.get()).to_string();
        }
        if let Some(folder) = path.strip_suffix("/sriov_numvfs") {
            self.virtual_functions(folder.rsplit('/').next().unwrap(), text.parse().unwrap())?;
        }
        self.host.write(path, &text)?;
        if path == "/sys/bus/pci/drivers_probe" {
            self.probe(&text);
        }
        Ok(())
    }

    fn save(&self, path: &str, text: &str) -> io::Result<()> {
        self.done.borrow_mut().push(format!("save {path}"));
        self.host.save(path, text)
    }

    fn remove(&self, path: &str) -> io::Result<bool> {
        self.done.borrow_mut().push(format!("remove {path}"));
        self.host.remove(path)
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        self.host.make_folder(path)
    }

    fn give(&self, path: &str, user: Option<u32>, group: Option<u32>, mode: u32) -> io::Result<()> {
        let number = |id: Option<u32>| id.map_or("-".to_owned(), |id| id.to_string());
        self.done.borrow_mut().push(format!("give {path} {} {} {mode:04o}", number(user), number(group)));
        if self.host.has(path) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
    }

    fn call(&self, program: &str, arguments: &[&str]) -> Result<(), CallError> {
        self.done.borrow_mut().push(format!("{program} {}", arguments.join(" ")));
        match (program, arguments) {
            ("modprobe", [.., module]) if self.loadable.borrow().contains(*module) => {
                let natural = module.strip_prefix("pci:").and_then(|bdf| self.natural.borrow().get(bdf).cloned());
                self.driver(natural.as_deref().unwrap_or(module));
                Ok(())
            }
            ("modprobe", _) => Err(CallError::new(program, arguments, "Module not found")),
            _ => Ok(()),
        }
    }
}
