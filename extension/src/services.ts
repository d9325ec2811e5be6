import { showErrorMessage } from '@jupyterlab/apputils';
import { IRunningSessions } from '@jupyterlab/running';
import { kernelIcon } from '@jupyterlab/ui-components';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';
import { IService, listServices, stopService } from './api';

const POLL_MS = 10_000;

/** A duration such as "45 s", "12 min" or "3 h 5 min". */
export function duration(seconds: number): string {
  if (seconds < 120) {
    return `${Math.max(0, Math.round(seconds))} s`;
  }
  const minutes = Math.round(seconds / 60);
  const [hours, rest] = [Math.floor(minutes / 60), minutes % 60];
  return hours ? `${hours} h${rest ? ` ${rest} min` : ''}` : `${rest} min`;
}

/** What there is to know about a service, in a few short lines. */
export function describe(service: IService): string[] {
  const replicas = `${service.replicas} ${service.replicas === 1 ? 'replica' : 'replicas'}`;
  const uptime = service.uptime_s === null ? '' : `up ${duration(service.uptime_s)}`;
  const dollars = service.dollars_per_hour;
  const price = dollars === null ? '' : `$${Number(dollars.toPrecision(3))} per hour`;
  const end = service.stops_in_s === null ? '' : `stops in ${duration(service.stops_in_s)}`;
  const state = service.state === 'running' ? '' : service.state;
  const lines = [[service.models], [replicas, uptime, state], [price, end]];
  return lines.map(parts => parts.filter(Boolean).join(', ')).filter(Boolean);
}

/** The "Services" section of the Running sidebar. */
export class ServicesSection implements IRunningSessions.IManager {
  readonly name = 'Services';
  readonly shutdownLabel = 'Stop service';
  readonly shutdownAllLabel = 'Stop All';
  readonly shutdownAllConfirmationText = 'Stop all services of the workbench?';

  constructor() {
    this._poll = new Poll({
      name: 'workbench:services',
      factory: () => this._update(),
      frequency: { interval: POLL_MS, backoff: true, max: 60_000 },
      standby: 'when-hidden'
    });
  }

  get runningChanged(): ISignal<this, void> {
    return this._changed;
  }

  running(): IRunningSessions.IRunningItem[] {
    return this._services.map(service => ({
      className: 'workbench-service',
      icon: () => kernelIcon,
      label: () => service.name,
      labelTitle: () => [service.name, ...describe(service)].join('\n'),
      shutdown: () => void this._stop(service),
      children: describe(service).map(line => ({
        icon: () => '',
        label: () => line,
        labelTitle: () => line
      }))
    }));
  }

  refreshRunning(): void {
    void this._poll.refresh();
  }

  shutdownAll(): void {
    this._services.forEach(service => void this._stop(service));
  }

  private async _update(): Promise<void> {
    this._services = await listServices();
    // Also without a change: the sidebar misses a signal while it is hidden or being shown.
    this._changed.emit();
  }

  private async _stop(service: IService): Promise<void> {
    try {
      await stopService(service);
    } catch (error) {
      void showErrorMessage(`${service.name} was not stopped`, error as Error);
    }
    await this._poll.refresh();
  }

  private _services: IService[] = [];
  private _changed = new Signal<this, void>(this);
  private _poll: Poll;
}
