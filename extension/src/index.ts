import { JupyterFrontEnd, JupyterFrontEndPlugin } from '@jupyterlab/application';
import { ILauncher } from '@jupyterlab/launcher';
import { INotebookTracker } from '@jupyterlab/notebook';
import { IRunningSessionManagers } from '@jupyterlab/running';
import { notebookIcon } from '@jupyterlab/ui-components';
import { listNotebooks } from './api';
import { ServicesSection } from './services';

const CATEGORY = 'LLM serving workbench';
const OPEN = 'workbench:open-notebook';
const SAVE = 'workbench:save-notebook';
const SAVE_EVENT = 'workbench:save';

const services: JupyterFrontEndPlugin<void> = {
  id: 'llm-serving-workbench:services',
  description: 'Lists the services of the workbench in the Running sidebar.',
  autoStart: true,
  requires: [IRunningSessionManagers],
  activate: (app: JupyterFrontEnd, managers: IRunningSessionManagers) => {
    managers.add(new ServicesSection());
  }
};

const launcher: JupyterFrontEndPlugin<void> = {
  id: 'llm-serving-workbench:launcher',
  description: 'Adds the notebooks of the workbench to the launcher.',
  autoStart: true,
  requires: [ILauncher],
  activate: async (app: JupyterFrontEnd, cards: ILauncher) => {
    app.commands.addCommand(OPEN, {
      label: args => String(args.title ?? 'Open a notebook of the workbench'),
      caption: args => `Open ${args.path ?? 'a notebook of the workbench'}`,
      icon: notebookIcon,
      execute: args => app.commands.execute('docmanager:open', { path: args.path })
    });
    const notebooks = await listNotebooks();
    notebooks.forEach(({ path, title }, rank) =>
      cards.add({ command: OPEN, category: CATEGORY, args: { path, title }, rank })
    );
  }
};

/**
 * Saves a notebook when an element in it asks for that: after a reload, JupyterLab restores the
 * widgets of saved outputs only.
 */
const saving: JupyterFrontEndPlugin<void> = {
  id: 'llm-serving-workbench:save',
  description: 'Saves a notebook when a live view appears in it.',
  autoStart: true,
  requires: [INotebookTracker],
  activate: (app: JupyterFrontEnd, tracker: INotebookTracker) => {
    app.commands.addCommand(SAVE, {
      label: 'Save the notebook with its live view',
      execute: () => tracker.currentWidget?.context.save()
    });
    document.addEventListener(SAVE_EVENT, event => {
      const panel = tracker.find(({ node }) => node.contains(event.target as Node));
      void panel?.context.save();
    });
  }
};

export default [services, launcher, saving];
